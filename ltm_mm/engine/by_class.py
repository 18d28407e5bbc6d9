"""Keep what a test found per class, for the report: ``by_class.json`` beside the test's log."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..evaluation.by_class import detections_by_class, labels_by_class
from ..models.losses.dense_ib import all_reduce_

FILE = "by_class.json"


@contextmanager
def kept_by_class(runner: Runner, checkpoint: str) -> Iterator[None]:
    """Write what the test within finds per class, and of which checkpoint.

    Args:
        runner: with its test loader built.
        checkpoint: that is tested.
    """
    confusions = LabelConfusions()
    runner.register_hook(confusions)
    evaluations: dict[str, Any] = {}
    with _kept_evaluations(evaluations):
        yield
    classes = (runner.test_dataloader.dataset.metainfo or {}).get("classes") or ()
    by_class: dict[str, Any] = {}
    if evaluations and len(next(iter(evaluations.values())).params.catIds) == len(classes):
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            by_class = detections_by_class(evaluations, classes)
    elif confusions.pixels is not None:
        by_class = labels_by_class(all_reduce_(confusions.pixels).cpu().numpy(), classes)
    if runner.rank == 0:
        file = Path(runner.log_dir, FILE)
        file.write_text(json.dumps({"checkpoint": str(checkpoint), **by_class}))


@contextmanager
def _kept_evaluations(evaluations: dict[str, Any]) -> Iterator[None]:
    """Collect the ``COCOeval`` that mmdet's metric makes, of which it only returns means."""
    try:
        from mmdet.evaluation.metrics import coco_metric
    except ImportError:
        yield
        return

    class Kept(coco_metric.COCOeval):
        def accumulate(self, *args: object, **kwargs: object) -> None:
            super().accumulate(*args, **kwargs)
            if self.params.useCats:
                evaluations[self.params.iouType] = self

    original, coco_metric.COCOeval = coco_metric.COCOeval, Kept
    try:
        yield
    finally:
        coco_metric.COCOeval = original


class LabelConfusions(Hook):
    """Counts which class the pixels of each class were predicted as.

    Attributes:
        pixels: ``(classes, classes)``, int64; rows are true classes. None: no label maps.
    """

    def __init__(self) -> None:
        self.pixels: torch.Tensor | None = None

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Count the pixels of a batch."""
        count = len((runner.test_dataloader.dataset.metainfo or {}).get("classes") or ())
        for sample in outputs or ():
            if "pred_sem_seg" not in sample or "gt_sem_seg" not in sample or not count:
                continue
            predicted = sample.pred_sem_seg.data.flatten().long()
            true = sample.gt_sem_seg.data.flatten().long().to(predicted.device)
            if len(predicted) != len(true):
                continue
            counts = (true >= 0) & (true < count) & (predicted < count)
            pairs = torch.bincount(true[counts] * count + predicted[counts], minlength=count**2)
            pairs = pairs.view(count, count)
            self.pixels = pairs if self.pixels is None else self.pixels + pairs

"""Predict on photos, folders and videos with a config and its weights."""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import nn
from tqdm import tqdm

from ..checks.outputs import check_folder
from ..checks.training import require, require_file
from ..engine.build import check_device, construct, model_builder, scope_of
from ..engine.config import load_config
from ..engine.convert import parse_keep, set_detail, use_ltm
from ..engine.photos import class_names, pipeline_of
from ..errors import UserError
from ..export.evaluate import use_file
from ..export.files import is_exported
from .inputs import Picture, PictureReader, count_pictures, find_sources, reason
from .outputs import CocoResults, Drawings, LabelMapFiles, prediction_file


class Counts(NamedTuple):
    """How many pictures have a prediction, and what is wrong with others, a line each."""

    predicted: int
    failed: list[str]
    not_drawn: list[str]


def predict(
    config: str,
    checkpoint: str,
    sources: Sequence[str],
    out_dir: str | None = None,
    batch_size: int = 1,
    device: str = "cpu",
    score_thr: float = 0.3,
    pictures: bool = True,
    trust_checkpoint: bool = False,
    ltm: str | None = None,
    cfg_options: Mapping[str, object] | None = None,
    detail: str | None = None,
) -> Path:
    """Write what a model predicts on photos and videos.

    Photos are loaded and resized as the config's test pipeline does it, so results are those
    of ``tools/test.py``.

    Args:
        config: see :func:`ltm_mm.engine.load_config`.
        checkpoint: a whole model's, plain or merging; or a file of ``tools/export.py``.
        sources: photos, folders of them, and videos.
        out_dir: for the results; default ``work_dirs/<config's name>/predict``.
        batch_size: pictures that the model gets at once. Only those of one size share a batch, so
            results depend on it by rounding at most.
        device: that the model runs on; an exported file runs on the CPU.
        score_thr: detections below this score are left out.
        pictures: draw the predictions.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        ltm: convert the backbone, see :func:`ltm_mm.engine.parse_keep`.
        cfg_options: changes to the config.
        detail: a file of ``tools/learn.py``.

    Returns:
        The folder written: ``pictures/``; and ``images.json`` with ``predictions.bbox.json`` and
        ``predictions.segm.json`` in COCO's format, or ``labels/``.

    Raises:
        UserError: for a mistake in the input, and, after all others were predicted, if there are
            pictures that have no prediction.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, got {batch_size}")
    if not 0 <= score_thr <= 1:
        raise UserError(f"--score-thr must lie in 0..1, got {score_thr:g}")
    files = find_sources(sources)
    cfg = load_config(config, deepcopy(cfg_options))
    require(cfg, "model")
    require_file(checkpoint)
    set_detail(cfg, detail, ltm)
    folder = Path(out_dir or Path("work_dirs", Path(cfg.filename).stem, "predict"))
    check_folder("--out-dir", folder)
    model = build(cfg, checkpoint, ltm, device, trust_checkpoint, detail)
    with scope_of(cfg):
        metainfo, reduced = data_facts(cfg)
        reader = PictureReader(pipeline_of(cfg), reduced)
        batches = _batches(_with_progress(files, reader), batch_size)
        counts = _write(model, batches, cfg, folder, files, metainfo, score_thr, pictures)
    total = counts.predicted + len(counts.failed)
    print(
        f"Done.\n  {counts.predicted} photos or frames predicted, results in {folder}", flush=True
    )
    for lines, what in ((counts.failed, "have no prediction"), (counts.not_drawn, "are not drawn")):
        if lines:
            raise UserError(f"{len(lines)} of {total} pictures {what}, first {lines[0]}")
    return folder


def build(
    cfg: Config,
    checkpoint: str,
    ltm: str | None,
    device: str,
    trust: bool,
    detail: str | None = None,
) -> nn.Module:
    """The model to predict with: a config's with a checkpoint in it, or an exported file.

    Raises:
        UserError: the checkpoint, the file or the device cannot be used.
    """
    if is_exported(checkpoint):
        check_device(device)
        options = {"--ltm": ltm, "--detail": detail, f"--device {device}": device != "cpu"}
        use_file(cfg, checkpoint, options)
        with scope_of(cfg):
            return construct(cfg.model).eval()
    if ltm is not None:
        print("\n".join(use_ltm(cfg, parse_keep(ltm))), flush=True)
    return model_builder(cfg, checkpoint, trust=trust, device=device)()


def data_facts(cfg: Config) -> tuple[Mapping[str, object], bool]:
    """Classes and palette of the test data, and whether its label 0 does not count."""
    dataset = deepcopy((cfg.get("test_dataloader") or {}).get("dataset") or {})
    while "dataset" in dataset or "datasets" in dataset:  # wrappers
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    dataset_type = dataset.get("type", object)
    if isinstance(dataset_type, str):
        with DATASETS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
            dataset_type = registry.get(dataset_type) or object
    default = inspect.signature(dataset_type).parameters.get("reduce_zero_label")
    metainfo = dict(dataset.get("metainfo") or {})
    known = (
        {} if "classes" in metainfo else getattr(dataset_type, "METAINFO", {})
    )  # a palette is of its classes
    reduced = dataset.get("reduce_zero_label", default.default if default else False)
    return {**known, **metainfo, "classes": class_names(cfg)}, bool(reduced)


def _with_progress(files: Sequence[Path], reader: PictureReader) -> Iterator[Picture]:
    """All pictures of all files, with a progress bar."""
    with tqdm(total=count_pictures(files), desc="predicting", unit="image") as bar:
        for file in files:
            for picture in reader.read(file):
                yield picture
                bar.update()


def _batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    """Batches of pictures in a row that are of one size, so that none is padded for another."""
    batch: list[Picture] = []
    for picture in pictures:
        if picture.fault:
            yield [picture]
            continue
        if batch and _shape(batch[0]) != _shape(picture):
            yield batch
            batch = []
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _shape(picture: Picture) -> tuple[int, ...]:
    return tuple(picture.data["inputs"].shape)


def _write(
    model: nn.Module,
    batches: Iterator[list[Picture]],
    cfg: Config,
    folder: Path,
    files: Sequence[Path],
    metainfo: Mapping[str, Any],
    score_thr: float,
    draw: bool,
) -> Counts:
    """Predict and write; what was predicted before an error or Ctrl-C is written, too."""
    counts = Counts(0, [], [])
    results: CocoResults | LabelMapFiles | None = None
    drawings: Drawings | None = None
    with ExitStack() as ends:
        for batch in batches:
            for picture, sample in _predict(model, batch):
                if sample is None:
                    counts.failed.append(f"{picture.name} {picture.fault}")
                    tqdm.write(f"left out: {counts.failed[-1]}", file=sys.stderr)
                    continue
                if results is None:
                    results = prediction_file(sample, folder, files, metainfo.get("classes"))
                    ends.callback(results.close)
                if draw and drawings is None:
                    visualizer_cfg = cfg.get("visualizer") or _visualizer(cfg)
                    drawings = Drawings(
                        folder / "pictures", files, visualizer_cfg, metainfo, score_thr
                    )
                    ends.callback(drawings.close)
                if "pred_instances" in sample:
                    instances = sample.pred_instances
                    sample.pred_instances = instances[instances.scores >= score_thr]
                results.write(picture, sample)
                counts = counts._replace(predicted=counts.predicted + 1)
                try:
                    if drawings:
                        drawings.write(picture, sample)
                except (ValueError, TypeError, IndexError) as error:  # one pixel, for mmseg's
                    counts.not_drawn.append(f"{picture.name} ({reason(error)})")
                    tqdm.write(f"not drawn: {counts.not_drawn[-1]}", file=sys.stderr)
    return counts


def _visualizer(cfg: Config) -> dict[str, str]:
    scope = "Seg" if cfg.get("default_scope") == "mmseg" else "Det"
    return dict(type=f"{scope}LocalVisualizer", name="visualizer")


def _predict(model: Any, batch: list[Picture]) -> Iterator[tuple[Picture, BaseDataElement | None]]:
    """A sample for every picture of a batch; None for one with a fault.

    Raises:
        UserError: the GPU's memory is full.
    """
    if batch[0].fault:
        yield batch[0], None
        return
    try:
        with torch.no_grad():
            samples = model.test_step(pseudo_collate([picture.data for picture in batch]))
    except torch.cuda.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full: lower --batch-size or the image size") from error
    except Exception as error:  # of whatever layer cannot work on the picture
        if len(batch) == 1:
            batch[0].fault = f"fails in the model ({reason(error)})"
        for picture in batch:  # one by one: which of them is it?
            yield from _predict(model, [picture])
        return
    for picture, sample in zip(batch, samples, strict=True):
        yield picture, sample.cpu()

"""Measures of merging during validation and testing."""

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..evaluation.held_out import held_out_information
from ..evaluation.merge_quality import achievable_accuracy, count_groups, pooling_groups
from ..merging import Merge, record_merges
from ..models.losses.dense_ib import all_reduce_
from ..models.losses.token_labels import grid_counts, merged_labels, segments
from ..registry import HOOKS
from .merging_blocks import merging_stages

RATIOS = ("kept", "asa", "asa_pooling")


@HOOKS.register_module()
class MergeStatistics(Hook):
    """Adds what merging does to the metrics of every validation and test.

    ::

        custom_hooks = [dict(type='ltm_mm.MergeStatistics')]

    ``ltm/kept``: share of the tokens that merging leaves. ``ltm/asa``: achievable segmentation
    accuracy of the groups against objects or classes, and ``ltm/asa_pooling``, the same of as
    many groups by area pooling in the same windows (where there are windows). ``ltm/I_AX``,
    ``ltm/I_AY``, ``ltm/IB``: information of the merged tokens of a stage's last merging block
    about themselves and their class, see :func:`.held_out_information`. Each is the mean over
    the stages that merge, and also given per stage, over all its merging blocks
    (``ltm/0/asa``, in order). A model that merges nothing gets none of these. Test images must
    carry annotations, and be seen whole (no sliding window).

    Args:
        tokens_per_image: merged tokens that each image adds to the information estimate.
        centroids, temperature: of that estimate.

    Raises:
        ValueError: if an argument is out of range.
    """

    priority = "HIGHEST"  # before the hook that takes the metrics to the log

    def __init__(
        self, tokens_per_image: int = 256, centroids: int = 64, temperature: float = 0.1
    ) -> None:
        for name, value in (("tokens_per_image", tokens_per_image), ("centroids", centroids)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature!r}")
        self.tokens_per_image = tokens_per_image
        self.options: dict[str, Any] = {"centroids": centroids, "temperature": temperature}

    def before_val_epoch(self, runner: Runner) -> None:
        """Start to look."""
        self._start(runner.model, runner.val_dataloader.dataset.metainfo)

    def before_test_epoch(self, runner: Runner) -> None:
        """Start to look."""
        self._start(runner.model, runner.test_dataloader.dataset.metainfo)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the measures to the metrics."""
        self._finish(metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the measures to the metrics."""
        self._finish(metrics)

    def _start(self, model: Any, metainfo: dict) -> None:
        while is_model_wrapper(model):
            model = model.module
        self.num_classes = len(metainfo.get("classes") or ()) + 1
        self.stages = list(merging_stages(model).values())
        self.sums: dict[int, Tensor] = {}
        self.tokens: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.images = 0
        self.inner = ExitStack()
        self.handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """A batch goes into the model."""
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[0]
        self.size = (inputs.shape[-2], inputs.shape[-1])
        self.merges = self.inner.enter_context(record_merges(model))

    @torch.no_grad()
    def _after(self, model: nn.Module, args: tuple, kwargs: dict, outputs: object) -> None:
        """A batch comes out of the model."""
        self.inner.close()
        samples = kwargs["data_samples"] if "data_samples" in kwargs else args[1]
        if len({name for name, _ in self.merges}) < len(self.merges):
            raise ValueError(
                "MergeStatistics needs images that are seen whole: set model.test_cfg.mode=whole"
            )
        if self.merges:
            device = self.merges[0][1].merged.device
            segmented = [segments(sample, self.size, device) for sample in samples]
            pixels = torch.stack([pixels for pixels, _ in segmented])
            classes = torch.stack([self._class_map(*pair) for pair in segmented])
            stages = {name: k for k, names in enumerate(self.stages) for name in names}
            for name, merge in self.merges:
                self._measure(stages[name], merge, pixels)
                if name == self.stages[stages[name]][-1]:
                    self._take_tokens(stages[name], merge, classes)
        self.images += len(samples)
        self.merges = []

    def _measure(self, stage: int, merge: Merge, pixels: Tensor) -> None:
        """Add up what a merge's groups do to the segments of a batch ``(images, H, W)``."""
        groups, pooling = merge.groups(), pooling_groups(merge)
        sums = torch.zeros(len(RATIOS), 2, dtype=torch.float64, device=groups.device)
        sums[0] = sums.new_tensor([count_groups(groups), groups.numel()])
        counts = grid_counts(merge, pixels, max(int(pixels.max()) + 1, 1))[..., :-1]
        sums[1] = torch.stack(achievable_accuracy(counts, groups))
        if pooling is not None:
            sums[2] = torch.stack(achievable_accuracy(counts, pooling.expand_as(groups)))
        self.sums[stage] = self.sums.get(stage, 0) + sums

    def _take_tokens(self, stage: int, merge: Merge, classes: Tensor) -> None:
        """Keep some merged tokens of every image, with their classes."""
        labels = merged_labels(merge, grid_counts(merge, classes, self.num_classes))
        parts = (t.chunk(len(classes)) for t in (merge.merged.float(), labels))
        for k, (tokens, token_labels) in enumerate(zip(*parts, strict=True)):
            self._sample(stage, tokens.flatten(0, 1), token_labels.flatten(), self.images + k)

    def _class_map(self, pixels: Tensor, classes: Tensor | None) -> Tensor:
        """Class of every pixel ``(H, W)``, -1 for none; the background is the last one."""
        if classes is not None:  # object numbers to classes
            background = classes.new_full((1,), self.num_classes - 1)
            table = torch.cat([background, classes])
            pixels = torch.where(pixels >= 0, table[pixels.clamp(min=0)], pixels)
        return pixels.masked_fill(pixels >= self.num_classes, -1)

    def _sample(self, stage: int, tokens: Tensor, labels: Tensor, seed: int) -> None:
        """Keep some labelled merged tokens of an image, ``(k, C)`` and ``(k,)``."""
        labelled = (labels >= 0).nonzero().squeeze(1).cpu()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labelled), generator=generator)[: self.tokens_per_image]
        chosen = labelled[order].to(labels.device)
        self.tokens[stage].append((tokens[chosen], labels[chosen]))

    def _finish(self, metrics: dict[str, float] | None) -> None:
        for handle in self.handles:
            handle.remove()
        if not self.stages:
            print_log("MergeStatistics: the model merges no tokens, nothing to measure", "current")
        values: dict[str, dict[int, float]] = defaultdict(dict)
        for k in sorted(self.sums):
            for key, (part, whole) in zip(RATIOS, all_reduce_(self.sums[k]).tolist(), strict=True):
                if whole:
                    values[key][k] = part / whole
            if k in self.tokens:
                tokens, labels = (torch.cat(parts) for parts in zip(*self.tokens[k], strict=True))
                information = held_out_information(tokens, labels, self.num_classes, **self.options)
                for key, value in information.items():
                    values[key][k] = value
        if metrics is None:
            return
        for key, each in values.items():
            metrics[f"ltm/{key}"] = sum(each.values()) / len(each)
        for key, each in values.items():
            metrics.update({f"ltm/{k}/{key}": value for k, value in each.items()})

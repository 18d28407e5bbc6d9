"""Measures of merging during validation and testing (ours)."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..evaluation.held_out import held_out_information
from ..evaluation.merge_quality import (
    achievable_accuracy,
    prior_shift,
    real_rows,
    row_entropy,
    untrained,
)
from ..models.losses.dense_ib import all_reduce_
from ..models.losses.token_labels import majority, segments
from ..registry import HOOKS
from .capture import Caught, catch_merges, merging_stages

RATIOS = ("mask_entropy", "prior_shift", "asa", "asa_prior")


@HOOKS.register_module()
class MergeStatistics(Hook):
    """Adds what the merging masks do to the metrics of every validation and test.

    ::

        custom_hooks = [dict(type='ltm_mm.MergeStatistics')]

    ``ltm/mask_entropy``: mean entropy of the rows of U (nats). ``ltm/prior_shift``: how far
    they moved from the untrained spatial prior (0 to 1). ``ltm/asa``: achievable segmentation
    accuracy of the merged groups against objects or classes, and ``ltm/asa_prior``, the same
    with the untrained prior's groups. ``ltm/I_AX``, ``ltm/I_AY``, ``ltm/IB``: information of
    the merged tokens about themselves and their class, see :func:`.held_out_information`.
    Each is the mean over the mergers, and also given per merger (``ltm/0/asa``, in order). A
    model that merges nothing gets none of these. Test images must carry annotations, and be
    seen whole (no sliding window).

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
        self.options = {"centroids": centroids, "temperature": temperature}

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

    def _start(self, model: nn.Module, metainfo: dict) -> None:
        while is_model_wrapper(model):
            model = model.module
        self.num_classes = len(metainfo.get("classes") or ()) + 1
        self.names = [n for mergers in merging_stages(model).values() for n, _ in mergers]
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.images = 0
        self.inner = ExitStack()
        self.handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """A batch goes into the model."""
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[0]
        size = (inputs.shape[-2], inputs.shape[-1])
        self.caught = self.inner.enter_context(catch_merges(model, size))

    def _after(self, model: nn.Module, args: tuple, kwargs: dict, outputs: object) -> None:
        """A batch comes out of the model."""
        self.inner.close()
        samples = kwargs["data_samples"] if "data_samples" in kwargs else args[1]
        names = [c.name for c in self.caught]
        if len(set(names)) < len(names):
            raise ValueError(
                "MergeStatistics needs images that are seen whole: set model.test_cfg.mode=whole"
            )
        for caught in self.caught:
            self._look(caught, samples)
        self.images += len(samples)
        self.caught = []

    @torch.no_grad()
    def _look(self, caught: Caught, samples: Sequence) -> None:
        """Take a merge's sums and some of its tokens."""
        merged = caught.merge
        back = merged.back.float()
        real = real_rows(merged).expand(back.shape[:3])
        sums = torch.zeros(len(RATIOS), 2, dtype=torch.float64, device=back.device)
        sums[0, 0] = row_entropy(back)[real].sum()
        sums[1, 0] = prior_shift(back, merged.window)[real].sum()
        sums[:2, 1] = real.sum()
        found = [segments(sample, caught.image, back.device) for sample in samples]
        pixels = torch.stack([pixels for pixels, _ in found])
        counts = caught.token_counts(pixels, int(pixels.max()) + 1)[..., :-1]
        for row, mask in ((2, back), (3, untrained(back, merged.window).expand_as(back))):
            sums[row] += torch.stack(achievable_accuracy(counts, mask, merged.window))
        self.sums[caught.name] = self.sums.get(caught.name, 0) + sums
        kinds = torch.stack([self._kinds(*pair) for pair in found])
        labels = majority(caught.slot_counts(kinds, self.num_classes))
        for k, (slots, own) in enumerate(
            zip(merged.slots.chunk(len(samples)), labels.chunk(len(samples)), strict=True)
        ):
            self._sample(caught.name, slots.float().flatten(0, 2), own.flatten(), self.images + k)

    def _kinds(self, pixels: Tensor, classes: Tensor | None) -> Tensor:
        """Class of every pixel ``(H, W)``, -1 for none; the background is the last one."""
        if classes is not None:  # object numbers to classes
            background = classes.new_full((1,), self.num_classes - 1)
            table = torch.cat([background, classes])
            pixels = torch.where(pixels >= 0, table[pixels.clamp(min=0)], pixels)
        return pixels.masked_fill(pixels >= self.num_classes, -1)

    def _sample(self, name: str, slots: Tensor, labels: Tensor, seed: int) -> None:
        """Keep some labelled slots of an image, ``(k, C)`` and ``(k,)``."""
        labelled = (labels >= 0).nonzero().squeeze(1).cpu()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labelled), generator=generator)[: self.tokens_per_image]
        chosen = labelled[order].to(labels.device)
        self.tokens[name].append((slots[chosen], labels[chosen]))

    def _finish(self, metrics: dict[str, float] | None) -> None:
        for handle in self.handles:
            handle.remove()
        if not self.names:
            print_log("MergeStatistics: the model merges no tokens, nothing to measure", "current")
        values: dict[str, list[float]] = defaultdict(list)
        for name in self.names:
            if name not in self.sums:
                continue
            sums = all_reduce_(self.sums[name])
            for key, (part, whole) in zip(RATIOS, sums.tolist(), strict=True):
                values[key].append(part / max(whole, 1))
            tokens, labels = (torch.cat(t) for t in zip(*self.tokens[name], strict=True))
            information = held_out_information(tokens, labels, self.num_classes, **self.options)
            for key, value in information.items():
                values[key].append(value)
        if metrics is None:
            return
        for key, each in values.items():
            metrics[f"ltm/{key}"] = sum(each) / len(each)
        for key, each in values.items():
            metrics.update({f"ltm/{k}/{key}": value for k, value in enumerate(each)})

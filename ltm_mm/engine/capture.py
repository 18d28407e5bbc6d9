"""Read the merges that a model makes, whatever detector or segmentor it is (ours)."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..layers import TokenMerger
from ..models.losses.token_labels import token_counts
from ..ops import Merge


@dataclass
class Caught:
    """One merge of a forward pass.

    Attributes:
        name: the merger's path in the model.
        stage: the path of the blocks that it is one of.
        merge: what it returned.
        image: height and width of the images in pixels.
        earlier: the merge of the same stage before this one.
    """

    name: str
    stage: str
    merge: Merge
    image: tuple[int, int]
    earlier: "Caught | None" = None

    def token_counts(self, pixels: Tensor, num_classes: int) -> Tensor:
        """How many pixels of each class the merged tokens stand for.

        Args:
            pixels: ``(images, H, W)`` int64, -1 for none.
            num_classes: K.

        Returns:
            ``(B, h, w, K + 1)``, see :func:`ltm_mm.models.losses.token_labels.token_counts`. B
            may be several grids per image, one after the other: MobileViT has one per place
            in a patch.
        """
        if self.earlier is not None:
            return self.earlier.slot_counts(pixels, num_classes)
        batch, *grid, _ = self.merge.tokens.shape
        # A map of ceil(H / stride) tokens; the longer side tells the stride more exactly.
        stride = max(-(-n // k) for n, k in zip(self.image, grid, strict=True))
        counts = token_counts(pixels, (grid[0], grid[1]), stride, num_classes)
        return counts.repeat_interleave(batch // len(pixels), 0)

    def slot_counts(self, pixels: Tensor, num_classes: int) -> Tensor:
        """The same of the slots: a token's pixels go to its slots as its row of U says."""
        return self.merge.slot_amounts(self.token_counts(pixels, num_classes))


def merging_stages(model: nn.Module) -> dict[str, list[tuple[str, TokenMerger]]]:
    """Path of a stage's blocks -> its mergers with their paths, in order."""
    stages: dict[str, list[tuple[str, TokenMerger]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, TokenMerger):
            stages.setdefault(_blocks_of(name), []).append((name, module))
    return stages


def choose_stages(model: nn.Module, stages: str | Sequence[int]) -> dict[str, TokenMerger]:
    """Path -> merger of some of the stages that merge.

    Args:
        model: any model.
        stages: 'all', or positions among the stages that merge (-1: the last).

    Raises:
        ValueError: if nothing merges, or there is no such stage.
    """
    found = list(merging_stages(model).values())
    if not found:
        raise ValueError(
            f"{type(model).__name__} merges no tokens: use an LTM backbone with slots, or "
            "--ltm balanced"
        )
    wanted = range(len(found)) if isinstance(stages, str) else stages
    if any(not -len(found) <= i < len(found) for i in wanted):
        raise ValueError(
            f"stages must be 'all' or positions from 0 to {len(found) - 1} among the stages that "
            f"merge, got {stages!r}"
        )
    return dict(pair for i in wanted for pair in found[i])


@contextmanager
def catch_merges(model: nn.Module, size: tuple[int, int]) -> Iterator[list[Caught]]:
    """Collect the merges of the forward passes made inside, in order.

    Args:
        model: any model.
        size: height and width of its images in pixels.
    """
    caught: list[Caught] = []
    latest: dict[str, Caught] = {}
    handles = []

    def hook(name: str, stage: str, first: bool) -> Callable:
        def record(merger: TokenMerger, args: tuple, merged: Merge) -> None:
            earlier = None if first else latest[stage]
            latest[stage] = Caught(name, stage, merged, size, earlier)
            caught.append(latest[stage])

        return record

    try:
        for stage, mergers in merging_stages(model).items():
            for k, (name, merger) in enumerate(mergers):
                handles.append(merger.register_forward_hook(hook(name, stage, k == 0)))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _blocks_of(name: str) -> str:
    """``backbone.stages.2.blocks`` for the merger ``backbone.stages.2.blocks.1.merge``."""
    found = re.fullmatch(r"(?:(.*)\.)?\d+(?:\.\D[^.]*)*", name)
    return (found[1] or "") if found else ""

"""Read the merges that a model makes, whatever detector or segmentor it is (ours)."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from ..layers import TokenMerger
from ..ops import Merge


@dataclass
class Caught:
    """One merge of a forward pass.

    Attributes:
        name: the merger's path in the model.
        stage: the path of the blocks that it is one of.
        merge: what it returned.
        stride: pixels per side of the stage's tokens.
        covered: height and width in pixels that its slots cover, padding included.
    """

    name: str
    stage: str
    merge: Merge
    stride: int
    covered: tuple[int, int]


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
    wanted = range(len(found)) if stages == "all" else stages
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
    first: dict[str, Caught] = {}  # a later merge of a stage covers what its first one does
    handles = []

    def hook(name: str, stage: str, opens: bool) -> Callable:
        def record(module: TokenMerger, args: tuple, merged: Merge) -> None:
            if opens:
                found = _measure(name, stage, merged, module.window, size)
                first[stage] = found
            else:
                found = Caught(name, stage, merged, first[stage].stride, first[stage].covered)
            caught.append(found)

        return record

    try:
        for stage, mergers in merging_stages(model).items():
            for k, (name, merger) in enumerate(mergers):
                handles.append(merger.register_forward_hook(hook(name, stage, k == 0)))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _measure(name: str, stage: str, merged: Merge, window: int, size: tuple[int, int]) -> Caught:
    grid = merged.tokens.shape[1:3]
    # A map of ceil(H / stride) tokens; the longer side tells the stride more exactly.
    stride = max(-(-n // k) for n, k in zip(size, grid, strict=True))
    covered = tuple(-(-k // window) * window * stride for k in grid)
    return Caught(name, stage, merged, stride, covered)


def _blocks_of(name: str) -> str:
    """``backbone.stages.2.blocks`` for the merger ``backbone.stages.2.blocks.1.merge``."""
    found = re.fullmatch(r"(?:(.*)\.)?\d+(?:\.\D[^.]*)*", name)
    return (found[1] or "") if found else ""

"""Which blocks of a model merge tokens, whatever detector or segmentor it is (ours)."""

import re
from collections.abc import Sequence

from torch import nn

from ..merging import MaskModule


def mask_modules(model: nn.Module) -> list[str]:
    """Paths of a model's mask modules, one per block that merges, in order.

    They are the names that :func:`ltm_mm.merging.record_merges` gives.
    """
    return [name for name, m in model.named_modules() if isinstance(m, MaskModule)]


def merging_stages(model: nn.Module) -> dict[str, list[str]]:
    """Path of a stage's blocks -> paths of its mask modules, both in order."""
    stages: dict[str, list[str]] = {}
    for name in mask_modules(model):
        stages.setdefault(_blocks_of(name), []).append(name)
    return stages


def choose_stages(model: nn.Module, stages: str | Sequence[int]) -> list[str]:
    """Paths of the mask modules of some of the stages that merge.

    Args:
        model: any model.
        stages: 'all', or positions among the stages that merge (-1: the last).

    Raises:
        ValueError: if nothing merges, or there is no such stage.
    """
    merging = list(merging_stages(model).values())
    if not merging:
        raise ValueError(
            f"{type(model).__name__} merges no tokens: use an LTM backbone with `keep`, or "
            "--ltm balanced"
        )
    wanted = range(len(merging)) if isinstance(stages, str) else stages
    if any(not -len(merging) <= i < len(merging) for i in wanted):
        raise ValueError(
            f"stages must be 'all' or positions from 0 to {len(merging) - 1} among the stages that "
            f"merge, got {stages!r}"
        )
    return [name for i in wanted for name in merging[i]]


def block_of(name: str) -> str:
    """``backbone.stages.2.blocks.1`` for the mask module ``backbone.stages.2.blocks.1.merge``."""
    match = re.fullmatch(r"((?:.*\.)?\d+)(?:\.\D[^.]*)*", name)
    return match[1] if match else name


def _blocks_of(name: str) -> str:
    """``backbone.stages.2.blocks`` for the mask module ``backbone.stages.2.blocks.1.merge``."""
    return block_of(name).rpartition(".")[0]

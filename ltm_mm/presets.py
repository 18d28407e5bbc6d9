"""Merging plans: how many slots per window side each block's MLP runs on.

A *plan* has one entry per stage, an entry one int per block. Presets have the same
names for every backbone and are defined here, once: as shares of the window side, and
'paper' as a plan per architecture.
"""

from collections.abc import Sequence
from itertools import pairwise

Slots = str | Sequence[int | Sequence[int] | None] | None
Plan = tuple[tuple[int, ...], ...]

# name: share of the window side after (a stage's first blocks, its later blocks).
# A stage's first block wants all tokens: merged there, a trained model loses the
# most; from the second block on, 5/7 (half the tokens) costs nothing visible.
# A backbone of one stage (ViT) has no later stages whose first blocks see all tokens
# again: there the first third of the blocks count as first ones, 4 of 12 as in Swin-T.
PRESETS: dict[str, tuple[float, float]] = {
    "light": (1, 6 / 7),
    "balanced": (1, 5 / 7),
    "fast": (5 / 7, 5 / 7),
}
# Merging after the first block pays in stages of at least so many blocks. With two, only
# one MLP runs on slots, and the masks take longer than that saves (Swin-T, 800 x 1216,
# two cores: 1.20x with the third stage alone merged, 1.17x with all four).
DEEP = 3

# (family, width, depths) -> plan whose multiply-accumulates meet the paper's (arXiv
# 2407.15219) at its image size; `tools/flops.py` prints them. The paper gives the work
# and not the plans: these are ours, with all tokens in first blocks where that can be.
# MobileViT's figures there (plain XS 0.70 G, S 1.40 G) are 0.69 of what the same networks
# count here, and its convolutions alone are more than what the paper has for LTM: its
# plans meet the *share* of the plain network's work (0.74 and 0.84).
PAPER: dict[tuple[str, int, tuple[int, ...]], tuple] = {
    ("swin", 96, (2, 2, 6, 2)): ((7, 6), (7, 6), (7, 6, 6, 5, 5, 5), (7, 6)),
    ("swin", 128, (2, 2, 18, 2)): ((7, 6), (7, 6), (7, *(6,) * 13, *(5,) * 4), (7, 6)),
    ("vit", 384, (12,)): ((*(7,) * 7, *(5,) * 5),),
    ("vit", 768, (12,)): ((*(7,) * 5, *(5,) * 7),),
    ("efficientvit", 128, (0, 0, 3, 4)): (None, None, (8, 5, 4), (8, 6, 5, 5)),
    ("mobilevit", 96, (0, 0, 2, 4, 3)): (None, None, 3, 3, 3),
    ("mobilevit", 144, (0, 0, 2, 4, 3)): (None, None, 6, 5, 5),
}
NAMES = (*PRESETS, "paper")


def check_window(window: int) -> None:
    """Raise a ValueError unless the tokens per window side are an int >= 1."""
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window_size must be an int >= 1, got {window!r}")


def resolve_plan(
    slots: Slots, depths: Sequence[int], window: int, model: tuple[str, int] | None = None
) -> Plan:
    """Slots per window side of every block, from any form a user may give.

    Args:
        slots: None (no merging), a preset's name, or one entry per stage: None, an
            int (merged in the stage's first block), or one int per block, never
            rising within a stage.
        depths: blocks per stage that can merge; 0 for a stage without attention.
        window: tokens per window side; the largest number of slots.
        model: family and width, which 'paper' depends on.

    Returns:
        One tuple per stage, one int per block; ``window`` where nothing is merged.

    Raises:
        ValueError: if the plan does not fit; says what is allowed.
    """
    if slots == "paper":
        slots = _paper_plan(model, tuple(depths))
    if slots is None:
        return tuple((window,) * depth for depth in depths)
    if isinstance(slots, str):
        if slots not in PRESETS:
            raise ValueError(f"unknown slots preset {slots!r}: choose from {', '.join(NAMES)}")
        return _preset_plan(slots, depths, window)
    if not isinstance(slots, Sequence) or len(slots) != len(depths):
        raise ValueError(
            f"slots must be None, one of {', '.join(NAMES)}, or have one entry for each of the "
            f"{len(depths)} stages, got {slots!r}"
        )
    return tuple(
        _stage_plan(entry, depth, window, stage)
        for stage, (entry, depth) in enumerate(zip(slots, depths, strict=True))
    )


def _paper_plan(model: tuple[str, int] | None, depths: tuple[int, ...]) -> Slots:
    """The plan of :data:`PAPER` for an architecture."""
    if model and (*model, depths) in PAPER:
        return PAPER[(*model, depths)]
    known = [f"{family} (width {width}, depths {d})" for family, width, d in PAPER]
    raise ValueError(f"the preset 'paper' exists only for {', '.join(known)}")


def _preset_plan(name: str, depths: Sequence[int], window: int) -> Plan:
    """A preset's plan: in every stage, or where its first block is whole in the deep ones.

    A backbone without a deep stage is merged in all.
    """
    first, later = (max(1, round(share * window)) for share in PRESETS[name])
    everywhere = first < window or max(depths) < DEEP
    lead = max(depths[0] // 3, 1) if len(depths) == 1 else 1
    return tuple(
        (*(first,) * lead, *(later,) * depth)[:depth]
        if everywhere or depth >= DEEP
        else (window,) * depth
        for depth in depths
    )


def _stage_plan(
    entry: int | Sequence[int] | None, depth: int, window: int, stage: int
) -> tuple[int, ...]:
    """One stage's slots per block; see :func:`resolve_plan`."""
    where = f"slots of stage {stage}"
    if entry is None:
        return (window,) * depth
    if depth == 0:
        raise ValueError(
            f"{where}: the stage has no attention, so there is nothing to merge in; give None, "
            f"got {entry!r}"
        )
    counts = [entry] * depth if isinstance(entry, int) else entry
    if isinstance(counts, str) or not isinstance(counts, Sequence) or len(counts) != depth:
        raise ValueError(
            f"{where}: give None, one int, or one int for each of its {depth} blocks, got {entry!r}"
        )
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= window:
            raise ValueError(f"{where}: {count!r} is not an int from 1 to the window size {window}")
    if any(later > earlier for earlier, later in pairwise(counts)):
        raise ValueError(
            f"{where}: {tuple(counts)} rises; merged tokens come back only at the stage's end"
        )
    return tuple(counts)

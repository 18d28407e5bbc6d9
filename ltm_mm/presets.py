"""Merging plans: how many slots per window side each block's MLP runs on.

A *plan* has one entry per stage, an entry one int per block. Presets have the same
names for every backbone and are defined here, once, as shares of the window side.
"""

from collections.abc import Sequence
from itertools import pairwise

Slots = str | Sequence[int | Sequence[int] | None] | None
Plan = tuple[tuple[int, ...], ...]

# name: share of the window side after (a stage's first block, its later blocks).
# A stage's first block wants all tokens: merged there, a trained model loses the
# most; from the second block on, 5/7 (half the tokens) costs nothing visible.
PRESETS: dict[str, tuple[float, float]] = {
    "light": (1, 6 / 7),
    "balanced": (1, 5 / 7),
    "fast": (5 / 7, 5 / 7),
}
# Merging after the first block pays in stages of at least so many blocks. With two, only
# one MLP runs on slots, and the masks take longer than that saves (Swin-T, 800 x 1216,
# two cores: 1.20x with the third stage alone merged, 1.17x with all four).
DEEP = 3


def resolve_plan(slots: Slots, depths: Sequence[int], window: int) -> Plan:
    """Slots per window side of every block, from any form a user may give.

    Args:
        slots: None (no merging), a preset's name, or one entry per stage: None, an
            int (merged in the stage's first block), or one int per block, never
            rising within a stage.
        depths: blocks per stage.
        window: tokens per window side; the largest number of slots.

    Returns:
        One tuple per stage, one int per block; ``window`` where nothing is merged.

    Raises:
        ValueError: if the plan does not fit; says what is allowed.
    """
    if slots is None:
        return tuple((window,) * depth for depth in depths)
    if isinstance(slots, str):
        if slots not in PRESETS:
            raise ValueError(f"unknown slots preset {slots!r}: choose from {', '.join(PRESETS)}")
        return _preset_plan(slots, depths, window)
    if not isinstance(slots, Sequence) or len(slots) != len(depths):
        raise ValueError(
            f"slots must be None, one of {', '.join(PRESETS)}, or have one entry for each of the "
            f"{len(depths)} stages, got {slots!r}"
        )
    return tuple(
        _stage_plan(entry, depth, window, stage)
        for stage, (entry, depth) in enumerate(zip(slots, depths, strict=True))
    )


def _preset_plan(name: str, depths: Sequence[int], window: int) -> Plan:
    """A preset's plan: in every stage, or where its first block is whole in the deep ones.

    A backbone without a deep stage is merged in all.
    """
    first, later = (max(1, round(share * window)) for share in PRESETS[name])
    everywhere = first < window or max(depths) < DEEP
    return tuple(
        (first, *(later,) * (depth - 1)) if everywhere or depth >= DEEP else (window,) * depth
        for depth in depths
    )


def _stage_plan(
    entry: int | Sequence[int] | None, depth: int, window: int, stage: int
) -> tuple[int, ...]:
    """One stage's slots per block; see :func:`resolve_plan`."""
    where = f"slots of stage {stage}"
    if entry is None:
        return (window,) * depth
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

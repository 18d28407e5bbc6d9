"""Merging plans: how many tokens each block keeps.

A *plan* has one entry per stage, an entry one int per block: the tokens that it keeps of each
window (Swin's, EfficientViT's), or of every N of an image (ViT's, MobileViT's). Presets have the
same names for every backbone; their shares are in the families' records.
"""

import numbers
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .families import FAMILIES, titles

Number = int | float  # tokens, or a share of them
Entry = Number | Sequence[Number | None] | None
Keep = str | Number | Sequence[Entry] | None
Plan = tuple[tuple[int, ...], ...]

NAMES = ("light", "balanced", "fast", "fastest", "paper")


def resolve_plan(
    keep: Keep,
    depths: Sequence[int],
    tokens: int,
    model: tuple[str, int],
    chained: bool = False,
    square: bool = False,
) -> Plan:
    """Tokens that every block keeps, from any form of ``keep``.

    Args:
        keep: None or 'none' (all: no merging), a preset's name, a number for all blocks, or one
            entry per stage: None, a number, or None or a number per block. A number is an int
            ``1 .. tokens`` or a share, a float above 0 and up to 1.
        depths: blocks per stage that can merge; 0 for a stage without attention.
        tokens: number of tokens that the numbers refer to (N).
        model: family and width.
        chained: whether a block gets the tokens that the previous one kept: then numbers must not
            rise within a stage.
        square: whether merged tokens lie on a square grid: then only square numbers are allowed.

    Returns:
        One tuple per stage, one int per block; ``tokens`` where nothing is merged.

    Raises:
        ValueError: if the plan does not fit; the message states what is allowed.
    """
    keep = None if isinstance(keep, str) and keep == "none" else _plain(keep)
    if isinstance(keep, str):
        keep = _preset(keep, tuple(depths), model)
    if keep is None or (isinstance(keep, int | float) and not isinstance(keep, bool)):
        keep = [None if depth == 0 else keep for depth in depths]
    if not isinstance(keep, Sequence) or len(keep) != len(depths):
        raise ValueError(
            f"keep must be None, one of {', '.join(NAMES)}, a number of tokens or a share of "
            f"them, or have one entry for each of the {len(depths)} stages, got {keep!r}"
        )
    plan = []
    entries: Sequence[Any] = keep
    for stage, (entry, depth) in enumerate(zip(entries, depths, strict=True)):
        where = f"keep of stage {stage}"
        counts = tuple(_count(x, tokens, square, where) for x in _entries(entry, depth, where))
        if chained and any(later > earlier for earlier, later in pairwise(counts)):
            raise ValueError(
                f"{where}: {counts} rises; a block gets what the one before it has kept"
            )
        plan.append(counts)
    return tuple(plan)


def _plain(keep: Any) -> Any:
    """A plan in Python's own numbers, whatever kind of numbers or arrays they were."""
    if isinstance(keep, list | tuple):
        return type(keep)(map(_plain, keep))
    if isinstance(keep, numbers.Real) and not isinstance(keep, bool):
        return int(keep) if isinstance(keep, numbers.Integral) else float(keep)
    return keep.tolist() if type(keep).__module__ == "numpy" else keep


def _preset(name: str, depths: tuple[int, ...], model: tuple[str, int]) -> Keep:
    """A preset as one entry per stage."""
    family, width = FAMILIES[model[0]], model[1]
    if name == "paper":
        if (width, depths) in family.paper:
            return family.paper[width, depths]
        known = [f"{f.name} (width {w}, depths {d})" for f in FAMILIES.values() for w, d in f.paper]
        raise ValueError(f"the preset 'paper' exists only for {', '.join(known)}")
    if name not in NAMES:
        raise ValueError(f"unknown preset keep={name!r}: choose from {', '.join(NAMES)}")
    if name not in family.presets:
        others = [f for f in FAMILIES.values() if name in f.presets]
        raise ValueError(f"the preset {name!r} exists only for {titles(others)}")
    return family.spread(family.presets[name], depths)


def _entries(entry: Entry, depth: int, where: str) -> Sequence[Number | None]:
    """One stage's entry, block by block."""
    if entry is None or (depth == 0 and entry in ((), [])):
        return [None] * depth
    if depth == 0:
        raise ValueError(
            f"{where}: the stage has no attention, so there is nothing to merge in; give None, "
            f"got {entry!r}"
        )
    counts = [entry] * depth if isinstance(entry, int | float) else entry
    if isinstance(counts, str) or not isinstance(counts, Sequence) or len(counts) != depth:
        raise ValueError(
            f"{where}: give None, a number, or one for each of its {depth} blocks, got {entry!r}"
        )
    return counts


def _count(value: Number | None, tokens: int, square: bool, where: str) -> int:
    """Tokens kept, from a number, a share, or None for all."""
    if value is None:
        return tokens
    if isinstance(value, float) and 0 < value <= 1:
        if square:
            return max(round((value * tokens) ** 0.5), 1) ** 2
        return max(round(value * tokens), 1)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= tokens:
        raise ValueError(
            f"{where}: {value!r} is neither a number of tokens from 1 to {tokens} nor a share of "
            "them, a float above 0 and up to 1"
        )
    if square and round(value**0.5) ** 2 != value:
        near = [max(round(value**0.5) + d, 1) ** 2 for d in (-1, 0, 1)]
        raise ValueError(
            f"{where}: merged tokens lie on a square grid here, {value} is no square number; "
            f"near are {', '.join(map(str, sorted({n for n in near if n <= tokens})))}"
        )
    return value

"""Merging plans: how many tokens each block keeps.

A *plan* has one entry per stage, an entry one int per block: the tokens that it keeps of each
window (Swin's, EfficientViT's), or of every N of an image (ViT's, MobileViT's). Presets have the
same names for every backbone and are defined here, once.
"""

import numbers
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Number = int | float  # tokens, or a share of them
Entry = Number | Sequence[Number | None] | None
Keep = str | Number | Sequence[Entry] | None
Plan = tuple[tuple[int, ...], ...]

# Family -> preset -> shares of tokens that are kept, stage by stage: a block of a stage takes the
# entry that lies as deep in the list as the block in the stage. They are what tools/plan.py found
# on weights trained on photos, see docs/fidelity.md. A ViT is one stage: a part of its blocks,
# after the first quarter, merge evenly down to the share given, and the later ones go on with
# that. So do all blocks of a MobileViT's stage; EfficientViT's merged tokens live on, too.
PRESETS: dict[str, dict[str, tuple]] = {
    "swin": {
        "light": ((1.0,), (1.0,), (1.0, 1.0, 0.65, 0.51, 0.33, 0.33), (0.33, 0.1)),
        "balanced": ((1.0,), (1.0,), (0.51, 0.33, 0.33, 0.18, 0.18, 0.18), (0.18, 0.1)),
        "fast": ((1.0, 0.49), (1.0, 0.49), (0.18, 0.18, 0.18, 0.1, 0.1, 0.1), (0.1, 0.1)),
        # For what was learned on it, see docs/learn.md.
        "fastest": ((0.33,), (0.245,), (0.18, 0.18, 0.18, 0.1, 0.1, 0.1), (0.1, 0.1)),
    },
    "vit": {"light": (0.75, 1 / 3), "balanced": (0.55, 1 / 3), "fast": (0.36, 1 / 2)},
    "mobilevit": {"light": 0.8, "balanced": 0.65, "fast": 0.5},
    "efficientvit": {
        "light": ((1.0, 0.735, 0.735),) * 4,
        "balanced": ((1.0, 0.51, 0.51),) * 4,
        "fast": ((0.51,),) * 4,
    },
}
NAMES = ("light", "balanced", "fast", "fastest", "paper")


def falling_shares(share: float, depth: int) -> tuple[float, ...]:
    """Shares that fall by the same step in every block, down to the last one's."""
    return tuple(1 - (1 - share) * (k + 1) / depth for k in range(depth))


def midway(share: float, part: float, depth: int) -> tuple[float, ...]:
    """Shares that fall evenly over a part of the blocks, after the first quarter."""
    falling = falling_shares(share, max(round(part * depth), 1))
    return ((1.0,) * (depth // 4) + falling + (share,) * depth)[:depth]


# (family, width, depths) -> plan whose multiply-accumulates meet the paper's (arXiv
# 2407.15219) at its image size; `tools/flops.py` prints them. The paper gives the work
# and not the plans: these are ours.
# MobileViT's figures there (plain XS 0.70 G, S 1.40 G) are 0.69 of what the same networks
# count here, and its convolutions alone are more than what the paper has for LTM: its
# plans meet the *share* of the plain network's work (0.74 and 0.84).
PAPER: dict[tuple[str, int, tuple[int, ...]], Keep] = {
    ("swin", 96, (2, 2, 6, 2)): (None, None, (None, *(0.72,) * 5), 0.72),
    ("swin", 128, (2, 2, 18, 2)): (None, None, (None, *(0.72,) * 17), 0.72),
    ("vit", 384, (12,)): (falling_shares(0.617, 12),),
    ("vit", 768, (12,)): (falling_shares(0.48, 12),),
    ("efficientvit", 128, (0, 0, 3, 4)): (None, None, (64, 25, 16), (64, 36, 25, 25)),
    ("mobilevit", 96, (0, 0, 2, 4, 3)): (None, None, 9, 9, 9),
    ("mobilevit", 144, (0, 0, 2, 4, 3)): (None, None, *(falling_shares(0.2, d) for d in (2, 4, 3))),
}


def resolve_plan(
    keep: Keep,
    depths: Sequence[int],
    tokens: int,
    model: tuple[str, int],
    chained: bool = False,
    square: bool = False,
) -> Plan:
    """Tokens that every block keeps, from any form a user may give.

    Args:
        keep: None or 'none' (all: no merging), a preset's name, a number for all blocks, or one
            entry per stage: None, a number, or None or a number per block. A number is an int
            ``1 .. tokens`` or a share, a float above 0 and up to 1.
        depths: blocks per stage that can merge; 0 for a stage without attention.
        tokens: what the numbers are of (N).
        model: family and width.
        chained: whether a block gets what the one before it kept: then numbers must not rise
            within a stage.
        square: whether merged tokens lie on a square grid: only square numbers of them can.

    Returns:
        One tuple per stage, one int per block; ``tokens`` where nothing is merged.

    Raises:
        ValueError: if the plan does not fit; says what is allowed.
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
    for stage, (entry, depth) in enumerate(zip(keep, depths, strict=True)):
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
    if name == "paper":
        if (*model, depths) in PAPER:
            return PAPER[(*model, depths)]
        known = [f"{family} (width {width}, depths {d})" for family, width, d in PAPER]
        raise ValueError(f"the preset 'paper' exists only for {', '.join(known)}")
    if name not in NAMES:
        raise ValueError(f"unknown preset keep={name!r}: choose from {', '.join(NAMES)}")
    shares = PRESETS[model[0]].get(name)
    if shares is None:
        raise ValueError(f"the preset {name!r} exists only for a Swin")
    if model[0] == "vit":
        return [midway(*shares, depths[0])]
    if isinstance(shares, float):
        return [falling_shares(shares, depth) if depth else None for depth in depths]
    stages = [shares[min(stage, len(shares) - 1)] for stage in range(len(depths))]
    return [
        [shares_of_stage[k * len(shares_of_stage) // depth] for k in range(depth)] or None
        for shares_of_stage, depth in zip(stages, depths, strict=True)
    ]


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

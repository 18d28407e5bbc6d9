"""The merging plan of the least error within a time budget, chosen exactly (ours).

A *unit* is what one decides about: a block of a Swin, a stage of an EfficientViT or MobileViT, all
blocks of a ViT. Each unit's options have a time and an error, both measured with nothing else
merged. A plan's time and squared error are the sums over its units.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...presets import Keep, Plan

MOST = 4096  # plans that are carried along; more are thinned out by time
Entry = tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """One way to merge in one unit.

    Attributes:
        counts: tokens that each of its blocks keeps.
        time: of the unit merged so, as a share of the plain model's time.
        error: squared relative error of the model's outputs with only this unit merged.
    """

    counts: Entry
    time: float
    error: float


@dataclass(frozen=True)
class TimedPlan:
    """An option for every unit; time and squared error are their sums (and the rest's)."""

    units: tuple[Entry, ...]
    time: float
    error: float


def frontier(units: Sequence[Sequence[Option]], rest: float, most: int = MOST) -> list[TimedPlan]:
    """The plans that no other plan beats in time and error, the fastest first.

    Unit by unit, dropping what is beaten: exact, as long as there are no more than ``most``; then
    only the best of each of as many steps of time goes on.

    Args:
        units: the options of every unit, one or more each.
        rest: time outside the units, as a share of the plain model's.
        most: plans that are carried along.
    """
    front = [TimedPlan((), rest, 0.0)]
    for options in units:
        longer = [
            TimedPlan((*p.units, o.counts), p.time + o.time, p.error + o.error)
            for p in front
            for o in options
        ]
        front = []
        for plan in sorted(longer, key=lambda p: (p.time, p.error)):
            if not front or plan.error < front[-1].error:
                front.append(plan)
        front = _thinned(front, most)
    return front


def _thinned(front: list[TimedPlan], most: int) -> list[TimedPlan]:
    """The last, and so best, plan of each step of time."""
    if len(front) <= most:
        return front
    first, last = front[0].time, front[-1].time
    steps = {int((p.time - first) / (last - first) * (most - 1)): p for p in front}
    return list(steps.values())


def best(front: Sequence[TimedPlan], budget: float) -> TimedPlan:
    """The least error within a budget.

    Args:
        front: of :func:`frontier`.
        budget: time as a share of the plain model's, > 0.

    Raises:
        UserError: if no plan is that fast; says how fast the fastest is.
    """
    within = [plan for plan in front if plan.time <= budget]
    if not within:
        raise UserError(
            f"--target-time {budget:.3g} cannot be met by merging: the fastest plan takes "
            f"{front[0].time:.2f} of the plain model's time here"
        )
    return within[-1]


def to_counts(units: Sequence[Entry], whole: Plan) -> Plan:
    """A plan's units as counts stage by stage.

    Args:
        units: in order; together as many blocks as ``whole`` has.
        whole: the plan that keeps all tokens; empty for a stage without attention.
    """
    left = [count for unit in units for count in unit]
    return tuple(tuple(left.pop(0) for _ in stage) for stage in whole)


def to_keep(counts: Plan, whole: Plan) -> Keep:
    """Counts as ``keep`` takes them; None if nothing is merged."""
    entries = [_entry(stage, all_tokens) for stage, all_tokens in zip(counts, whole, strict=True)]
    return tuple(entries) if any(entry is not None for entry in entries) else None


def _entry(counts: Entry, whole: Entry) -> int | tuple | None:
    if counts == whole:
        return None
    if len(set(counts)) == 1:
        return counts[0]
    return tuple(None if c == w else c for c, w in zip(counts, whole, strict=True))


def as_text(keep: Keep) -> str:
    """``keep`` as ``--ltm`` takes it.

    >>> as_text((None, (None, 25)))
    '(None, (None, 25))'
    """
    text = "none" if keep is None else str(keep)
    assert keep is None or ast.literal_eval(text) == keep
    return text

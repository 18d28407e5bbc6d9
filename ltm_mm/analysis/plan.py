"""A merging plan for a latency budget (ours).

Search space: in every stage with blocks to merge in, ``first`` slots per window side in its
first block and ``later <= first`` in all later ones. A stage's latency and damage are
measured apart from the other stages', so a plan's latency is a sum over stages (and of what
lies between them), and so is its damage. The plans that no other plan beats in both are
found exactly: stage by stage, dropping what is beaten.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..engine.errors import UserError
from .latency import Clock, interleave, ratios

Counts = tuple[int, ...]  # slots per window side, block by block; () for a stage without


@dataclass(frozen=True)
class Option:
    """One way to merge in one stage.

    Attributes:
        counts: slots per window side of each block.
        latency: of the stage merged so, as a share of the plain backbone's.
        damage: what merging so does to the stage's output, >= 0; adds up over stages.
    """

    counts: Counts
    latency: float
    damage: float


@dataclass(frozen=True)
class Plan:
    """Options for all stages; latency and damage are their sums (and the rest's)."""

    counts: tuple[Counts, ...]
    latency: float
    damage: float

    def slots(self, window: int) -> str:
        """As ``--ltm`` and ``slots=`` take it; ``none`` if nothing is merged."""
        entries = [_entry(counts, window) for counts in self.counts]
        return "none" if not any(entries) else str(tuple(entries))


def _entry(counts: Counts, window: int) -> int | Counts | None:
    if all(count == window for count in counts):
        return None
    return counts[0] if len(set(counts)) == 1 else counts


def options_of(depth: int, window: int, fewest: int) -> list[Counts]:
    """All ways to merge in a stage, the plain one first.

    Args:
        depth: blocks of the stage.
        window: tokens per window side.
        fewest: the smallest number of slots per window side.

    >>> options_of(3, 7, 6)
    [(7, 7, 7), (7, 6, 6), (6, 6, 6)]
    """
    sides = range(window, fewest - 1, -1)
    pairs = [(first, later) for first in sides for later in sides if later <= first]
    found = [(first, *(later,) * (depth - 1))[:depth] for first, later in pairs]
    return list(dict.fromkeys(found))


def frontier(stages: Sequence[Sequence[Option]], rest: float) -> list[Plan]:
    """The plans that no other plan beats in latency and damage, the fastest first.

    Args:
        stages: the options of every stage, one or more each.
        rest: latency of what lies outside the stages, as a share of the plain backbone's.
    """
    front = [Plan((), rest, 0.0)]
    for options in stages:
        longer = [
            Plan((*p.counts, o.counts), p.latency + o.latency, p.damage + o.damage)
            for p in front
            for o in options
        ]
        front = []
        for plan in sorted(longer, key=lambda p: (p.latency, p.damage)):
            if not front or plan.damage < front[-1].damage:
                front.append(plan)
    return front


def best(front: Sequence[Plan], budget: float) -> Plan:
    """The least damage within a budget.

    Args:
        front: of :func:`frontier`.
        budget: latency as a share of the plain backbone's, > 0.

    Raises:
        UserError: if no plan is that fast; says how fast the fastest is.
    """
    within = [plan for plan in front if plan.latency <= budget]
    if not within:
        raise UserError(
            f"--target-latency {budget:g} cannot be met by merging: the fastest plan takes "
            f"{front[0].latency:.2f} of the plain backbone's time here"
        )
    return within[-1]


def token_damage(counts: Counts, window: int) -> float:
    """Damage told from token counts alone: the share lost in each block, squared.

    Squared, because the last tokens are dearer than the first; a stand-in where nothing is
    measured.
    """
    return sum((1 - count**2 / window**2) ** 2 for count in counts)


def stage_inputs(backbone: nn.Module, images: Tensor) -> list[tuple]:
    """What every stage of a backbone is called with."""
    seen: list[tuple] = []
    handles = [
        stage.register_forward_pre_hook(lambda _, args: seen.append(args))
        for stage in backbone.stages  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        backbone(images)
    for handle in handles:
        handle.remove()
    return seen


def stage_latencies(
    stages: Mapping[Counts, nn.Module],
    plain: Counts,
    inputs: tuple,
    rounds: int,
    clock: Clock,
    synchronize: Callable[[], object] = lambda: None,
) -> tuple[float, dict[Counts, float]]:
    """Seconds of a plain stage, and what its merged forms take in shares of that.

    All forms take turns, and each round gives its own ratios.
    """

    def run(stage: nn.Module) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                stage(*inputs)
            synchronize()

        return call

    names = {str(counts): counts for counts in stages}
    seconds = interleave({n: run(stages[c]) for n, c in names.items()}, rounds, 1, clock)
    base = seconds[str(plain)]
    shares = {c: 1 / ratios(base, seconds[n]).median for n, c in names.items()}
    return sorted(base)[len(base) // 2], shares


def output_damage(stage: nn.Module, plain: nn.Module, inputs: Sequence[tuple]) -> float:
    """Squared relative change of a stage's output, the mean over images.

    Squares add up over stages as those of independent errors do.
    """
    changes = []
    with torch.no_grad():
        for args in inputs:
            own, other = _first(plain(*args)), _first(stage(*args))
            changes.append(((other - own).norm() / own.norm()).item() ** 2)
    return math.fsum(changes) / len(changes)


def _first(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """A stage's map at its full resolution."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def measure(
    backbones: Mapping[int, tuple[nn.Module, list[Counts]]],
    size: tuple[int, int],
    rounds: int,
    clock: Clock,
    pictures: Sequence[Tensor] = (),
) -> tuple[list[list[Option]], float]:
    """Options of every stage with their latency and damage, and the share of the rest.

    Args:
        backbones: index of an option -> a backbone merged so in all stages, and its plan;
            0 is the plain one. They share their weights.
        size: height and width that the latency is measured at.
        rounds: rounds of timing that count.
        clock: seconds so far.
        pictures: images ``(1, 3, H, W)`` that damage is measured on; none: by token count.
    """
    plain, plain_plan = backbones[0]
    device = next(plain.parameters()).device
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, *size, generator=generator).to(device)
    inputs = stage_inputs(plain, images)
    shown = [stage_inputs(plain, picture.to(device)) for picture in pictures]
    seconds, found = [], []
    for i, plain_counts in enumerate(tqdm(plain_plan, desc="stages", unit="stage")):
        forms = {plan[i]: model.stages[i] for model, plan in backbones.values()}  # type: ignore[index]
        forms = {plain_counts: plain.stages[i], **{c: m for c, m in forms.items() if c}}  # type: ignore[index]
        taken, shares = stage_latencies(forms, plain_counts, inputs[i], rounds, clock, synchronize)
        seconds.append(taken)
        window = max(plain_counts, default=1)
        damages = {
            counts: 0.0
            if counts == plain_counts
            else output_damage(stage, plain.stages[i], [one[i] for one in shown])  # type: ignore[index]
            if pictures
            else token_damage(counts, window)
            for counts, stage in forms.items()
        }
        found.append((shares, damages))
    whole, _ = stage_latencies({(0,): plain}, (0,), (images,), rounds, clock, synchronize)
    whole = max(whole, sum(seconds))  # timed apart, parts can add up to more
    options = [
        [Option(c, share * own / whole, damages[c]) for c, share in shares.items()]
        for own, (shares, damages) in zip(seconds, found, strict=True)
    ]
    return options, 1 - sum(seconds) / whole

"""Time and error of every unit of a model and each way to merge in it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...families import FAMILIES
from ...merging import MergeScope, MergingBlock
from ...presets import Keep, Plan
from ..benchmark.latency import Clock, interleave
from ..fidelity.compare import map_errors
from .search import Entry, to_counts, to_keep

Outputs = Callable[[nn.Module, Tensor], Sequence[Tensor]]


@dataclass
class MeasuredModel:
    """A model, how to build it with any plan, and the outputs whose error counts.

    Attributes:
        build: the model with a plan, in eval mode, on our blocks; None: nothing merged.
        family: its name, as in :data:`ltm_mm.families.FAMILIES`.
        whole: the plan that keeps all tokens.
        outputs: gets model and image, returns the maps (or logits) whose error counts.
    """

    build: Callable[[Keep], nn.Module]
    family: str
    whole: Plan
    outputs: Outputs


@dataclass(frozen=True)
class PlanUnit:
    """What one decides about; see :mod:`.plan`.

    Attributes:
        path: of its module in the model.
        stage: which stage it is of.
        plain: what its blocks keep without merging.
        timed_as: units of one name share their times.
    """

    path: str
    stage: int
    plain: Entry
    timed_as: str


def units_of(model: nn.Module, whole: Plan) -> list[PlanUnit]:
    """The units of a model that runs on our blocks, in order: its stages, or each block alone."""
    paths = [name for name, module in model.named_modules() if _is_unit(module)]
    stages = [(i, counts) for i, counts in enumerate(whole) if counts]
    if len(paths) == len(stages):
        return [PlanUnit(p, i, c, p) for p, (i, c) in zip(paths, stages, strict=True)]
    blocks = [(i, k, count) for i, counts in stages for k, count in enumerate(counts)]
    return [
        PlanUnit(path, i, (count,), f"stage {i}, {'shifted' if k % 2 else 'not shifted'}")
        for path, (i, k, count) in zip(paths, blocks, strict=True)
    ]


def _is_unit(module: nn.Module) -> bool:
    return isinstance(module, MergeScope) and any(
        isinstance(block, MergingBlock) for block in module.modules()
    )


@dataclass
class MergeVariants:
    """A model's units, and each of them merged in every way that is tried.

    Attributes:
        model: what to merge in.
        plain: it with nothing merged.
        units: in order.
        modules: of each unit, counts -> module; the plain one first.
    """

    model: MeasuredModel
    plain: nn.Module
    units: list[PlanUnit]
    modules: list[dict[Entry, nn.Module]]

    @classmethod
    def of(cls, model: MeasuredModel, progress: bool = True) -> "MergeVariants":
        """Build them all; they share the model's weights as far as ``model.build`` shares."""
        plain, whole = model.build(None), model.whole
        units, options = units_of(plain, whole), FAMILIES[model.family].options
        tried = [options(len(unit.plain), max(unit.plain)) for unit in units]
        modules = [{unit.plain: plain.get_submodule(unit.path)} for unit in units]
        for k in tqdm(range(len(tried[0])), desc="variants", disable=not progress, leave=False):
            merged = model.build(to_keep(to_counts([counts[k] for counts in tried], whole), whole))
            for unit, counts, of_unit in zip(units, tried, modules, strict=True):
                of_unit.setdefault(counts[k], merged.get_submodule(unit.path))
        return cls(model, plain, units, modules)


@torch.no_grad()
def measure_times(
    variants: MergeVariants,
    image: Tensor,
    rounds: int,
    clock: Clock = time.perf_counter,
    progress: bool = True,
) -> tuple[list[dict[Entry, float]], float]:
    """Time of every unit's variants and of the rest, in shares of the plain model's time.

    Args:
        variants: of the model.
        image: ``(1, 3, H, W)``, what time is measured on.
        rounds: rounds of timing that count.
        clock: seconds so far.
        progress: whether progress is shown.
    """
    inputs = _inputs(variants, image)
    known: dict[str, dict[Entry, float]] = {}
    units = tqdm(variants.units, desc="time", unit="block", disable=not progress)
    for unit, modules in zip(units, variants.modules, strict=True):
        if unit.timed_as not in known:
            known[unit.timed_as] = _seconds(modules, inputs[unit.path], rounds, clock)
    run: dict[Entry, Callable] = {(): lambda: variants.model.outputs(variants.plain, image)}
    whole = _seconds(run, (), rounds, clock)[()]
    taken = [known[unit.timed_as] for unit in variants.units]
    inside = sum(seconds[unit.plain] for unit, seconds in zip(variants.units, taken, strict=True))
    whole = max(whole, inside)  # timed apart, parts can add up to more
    shares = [{counts: s / whole for counts, s in seconds.items()} for seconds in taken]
    return shares, 1 - inside / whole


@torch.no_grad()
def measure_errors(
    variants: MergeVariants, images: Sequence[Tensor], progress: bool = True
) -> list[dict[Entry, float]]:
    """Squared error of every unit's variants with nothing else merged.

    The mean over images and maps.

    Args:
        variants: of the model.
        images: ``(1, 3, H, W)``.
        progress: whether progress is shown.
    """
    model, plain = variants.model, variants.plain
    all_errors = [dict.fromkeys(modules, 0.0) for modules in variants.modules]
    count = len(images) * sum(len(modules) - 1 for modules in variants.modules)
    with tqdm(total=count, desc="error", unit="pass", disable=not progress) as bar:
        for image in images:
            before = model.outputs(plain, image)
            of_units = zip(variants.units, variants.modules, all_errors, strict=True)
            for unit, modules, errors in of_units:
                for counts in (c for c in modules if c != unit.plain):
                    _set_submodule(plain, unit.path, modules[counts])
                    after = model.outputs(plain, image)
                    errors[counts] += squared_error(before, after) / len(images)
                    bar.update()
                _set_submodule(plain, unit.path, modules[unit.plain])
    return all_errors


def known_errors(variants: MergeVariants) -> list[dict[Entry, float]]:
    """The same where nothing is measured: the share of tokens lost in each block, squared."""
    weights = FAMILIES[variants.model.family].error_weights
    return [
        {
            counts: (weights[min(unit.stage, len(weights) - 1)] if weights else 1.0)
            * sum((1 - count / max(unit.plain)) ** 2 for count in counts)
            for counts in modules
        }
        for unit, modules in zip(variants.units, variants.modules, strict=True)
    ]


def _inputs(variants: MergeVariants, image: Tensor) -> dict[str, tuple]:
    """What every unit is called with."""
    seen: dict[str, tuple] = {}
    handles = [
        variants.plain.get_submodule(unit.path).register_forward_pre_hook(
            lambda _, args, path=unit.path: seen.setdefault(path, args) and None
        )
        for unit in variants.units
    ]
    variants.model.outputs(variants.plain, image)
    for handle in handles:
        handle.remove()
    return seen


def _seconds(
    variants: Mapping[Entry, Callable], inputs: tuple, rounds: int, clock: Clock
) -> dict[Entry, float]:
    """Seconds of every variant: the fastest round's, because what disturbs only ever adds."""

    def run(variant: Callable) -> Callable[[], None]:
        def call() -> None:
            variant(*inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return call

    taken = interleave({str(c): run(variant) for c, variant in variants.items()}, rounds, 1, clock)
    return {counts: min(taken[str(counts)]) for counts in variants}


def _set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def squared_error(plain: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Squared relative error, the mean over the maps."""
    errors = map_errors(plain, other)
    return sum(error**2 for error in errors) / len(errors)

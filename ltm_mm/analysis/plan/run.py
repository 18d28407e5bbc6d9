"""What ``tools/plan.py`` does: measure, choose, check, print, draw."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.copies import in_our_blocks, whole_plan
from ...adapters.maps import backbone_maps
from ...checks.options import check_counts
from ...checks.outputs import check_folder
from ...engine.build import channels_of, model_builder, named_config
from ...engine.config import change_config
from ...engine.convert import set_detail
from ...engine.photos import read_photos, some_photos, test_size
from ...errors import UserError
from ...presets import Keep, Plan
from ..benchmark.latency import Clock, Spread, clock_of, interleave, ratios
from ..benchmark.latency import threads as use_threads
from ..benchmark.report import machine, markdown_table
from .measure import (
    MeasuredModel,
    MergeVariants,
    Outputs,
    known_errors,
    measure_errors,
    measure_times,
    squared_error,
)
from .search import Option, TimedPlan, as_text, best, frontier, to_counts, to_keep

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
TRIES = 3  # of a tighter choice, where a plan as a whole is slower than its blocks promise


@dataclass
class Chosen:
    """The plan that was chosen, and all that it was chosen from.

    Attributes:
        keep: as ``keep`` takes it; None: nothing is merged.
        plan: with its estimated time and squared error.
        time: measured time of the whole model, as a share of the plain one's: median and
            quartiles.
        error: measured squared error; None without photos.
        front: the plans that no other beats.
        options: of every unit.
        rest: time outside the units, as a share of the plain model's.
        whole: the plan that keeps all tokens.
    """

    keep: Keep
    plan: TimedPlan
    time: Spread
    error: float | None
    front: list[TimedPlan]
    options: list[list[Option]]
    rest: float
    whole: Plan

    def keep_of(self, plan: TimedPlan) -> Keep:
        """Any of the plans as ``keep`` takes it."""
        return _keep_of(plan, self.whole)


def choose_plan(
    model: nn.Module,
    images: Sequence[Tensor],
    target_time: float,
    outputs: Outputs | None = None,
    timed: tuple[Callable[[Keep], nn.Module], Tensor] | None = None,
    rounds: int = 5,
    threads: int | None = None,
    progress: bool = True,
    clock: Clock = time.perf_counter,
) -> Chosen:
    """The plan of the least error within a time budget, for a model in memory.

    Args:
        model: built, as :func:`ltm_mm.apply` supports it, plain, in eval mode. It is not changed.
        images: ``(1, 3, H, W)``, normalised.
        target_time: share of the time of the plain model's outputs, 0..1.
        outputs: gets model and image and returns the maps (or logits) whose error and time count;
            None: the backbone's maps.
        timed: what builds another model of as many blocks with a plan (None: nothing merged), and
            an image: time is measured with them. None: with this model and the first image.
        rounds, threads, progress, clock: as :func:`ltm_mm.fidelity`.

    Returns:
        The plan; ``ltm_mm.apply(model, keep=found.keep)`` puts it on.

    Raises:
        ValueError: if the model cannot merge.
        UserError: if no plan is that fast.
    """
    family, whole = whole_plan(model)
    build = lambda keep: in_our_blocks(model, keep)  # noqa: E731
    measured = MeasuredModel(build, family, whole, outputs or backbone_maps)
    other, image = measured, images[0]
    if timed is not None:
        other, image = MeasuredModel(timed[0], family, whole, backbone_maps), timed[1]
    with use_threads(threads):
        return choose(measured, images, other, image, target_time, rounds, clock, progress)


@torch.no_grad()
def choose(
    model: MeasuredModel,
    images: Sequence[Tensor],
    timed: MeasuredModel,
    timed_on: Tensor,
    target: float,
    rounds: int,
    clock: Clock = time.perf_counter,
    progress: bool = True,
) -> Chosen:
    """As :func:`choose_plan`; without images errors are estimated from token counts."""
    variants = MergeVariants.of(model, progress)
    errors = measure_errors(variants, images, progress) if images else known_errors(variants)
    variants = variants if timed is model else MergeVariants.of(timed, progress)
    times, rest = measure_times(variants, timed_on, rounds, clock, progress)
    options = [
        [Option(counts, seconds[counts], error[counts]) for counts in seconds]
        for seconds, error in zip(times, errors, strict=True)
    ]
    front = frontier(options, rest)
    budget = target
    for _ in range(TRIES):
        plan = best(front, budget)
        keep = _keep_of(plan, model.whole)
        spread = _whole_time(timed, keep, timed_on, rounds, clock)
        late = spread.median - target
        if late <= 0 or front[0].time > budget - late:
            break
        budget -= late
    error = _whole_error(model, keep, images)
    return Chosen(keep, plan, spread, error, front, options, rest, model.whole)


def _keep_of(plan: TimedPlan, whole: Plan) -> Keep:
    return to_keep(to_counts(plan.units, whole), whole)


def _whole_time(
    model: MeasuredModel, keep: Keep, image: Tensor, rounds: int, clock: Clock
) -> Spread:
    """Measured time of a whole plan, as a share of the plain model's."""

    def run(built: nn.Module) -> Callable[[], None]:
        def call() -> None:
            model.outputs(built, image)
            if image.is_cuda:
                torch.cuda.synchronize()

        return call

    runs = dict(plain=run(model.build(None)), merged=run(model.build(keep)))
    base, other = interleave(runs, rounds, 1, clock).values()
    return ratios(other, base)


def _whole_error(model: MeasuredModel, keep: Keep, images: Sequence[Tensor]) -> float | None:
    """Measured squared error of a whole plan, the mean over images; None without images."""
    plain, merged = model.build(None), model.build(keep)
    errors = [squared_error(model.outputs(plain, x), model.outputs(merged, x)) for x in images]
    return math.fsum(errors) / len(errors) if errors else None


def make_plan(
    config: str,
    target_time: float,
    checkpoint: str | None = None,
    photos: str | None = None,
    size: Sequence[int] | None = None,
    num_photos: int = 8,
    rounds: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    cpu_time: bool = False,
    out: str = "work_dirs/plan",
    trust_checkpoint: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    detail: str | None = None,
) -> Chosen:
    """Choose how many tokens every block of a config's backbone keeps, on this machine.

    Args:
        config: a config whose backbone can merge, or a backbone's name such as ``ltm-swin-t``.
        target_time: budget as a share of the plain backbone's time, 0..1.
        checkpoint, photos: a trained model, and photos that errors are measured on; None: errors
            are estimated from token counts.
        size: height and width that photos are scaled to; None: as the config's test pipeline
            leaves them, and without photos what it makes of one of 3:2.
        num_photos: how many, evenly spread over the folder.
        rounds: rounds of timing that count.
        threads: CPU threads; None: as they are.
        device: 'cpu' or 'cuda'.
        cpu_time: the process's CPU seconds instead of wall time; one thread, CPU only.
        out: folder for JSON and picture.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        cfg_options: changes to the config.
        detail: a file of ``tools/learn.py``, with which times and errors are measured.

    Raises:
        UserError: for a mistake in the input, or if no plan is that fast.
    """
    _check(target_time, size, num_photos, rounds, threads, checkpoint, photos)
    check_folder("--out", out)
    clock = clock_of(cpu_time, threads, device)
    cfg = change_config(named_config(config), cfg_options or {})
    set_detail(cfg, detail, "balanced")  # or any other that is tried
    files = some_photos(photos, num_photos) if photos else []
    build = model_builder(cfg, checkpoint, backbone=True, trust=trust_checkpoint, device=device)
    plain = build(None)
    family, whole = whole_plan(plain)
    model = MeasuredModel(build, family, whole, lambda model, image: model(image))
    channels = channels_of(plain)
    images: list[Any] = read_photos(cfg, files, size, device, backbone=True, channels=channels)
    if images:
        timed_on = images[0]
    else:
        noise = torch.Generator().manual_seed(0)
        timed_on = torch.randn(1, channels, *(size or test_size(cfg)), generator=noise).to(device)
    height, width = timed_on.shape[2:]
    with use_threads(threads):
        chosen = choose(model, images, model, timed_on, target_time, rounds, clock)
    basis = (
        f"relative error of the maps, measured on {len(images)} photos"
        if images
        else "estimated from token counts, not measured: give --checkpoint and --photos to measure"
    )
    where = "the first photo's size" if images else "pixels"
    print(f"\ntime: of images of {height} x {width}, {where}\nerror: {basis}")
    print(f"\n{report(chosen, target_time)}", flush=True)
    metadata = dict(machine=machine(), config=config, size=[height, width], target=target_time)
    metadata["error"] = basis
    stem = Path(out, Path(config.rpartition("::")[2]).stem)
    for file in _save(chosen, metadata, stem):
        print(f"  {file}")
    return chosen


def _check(
    target: float,
    size: Sequence[int] | None,
    num_photos: int,
    rounds: int,
    threads: int | None,
    checkpoint: str | None,
    photos: str | None,
) -> None:
    if not 0 < target <= 1:
        raise UserError(
            f"--target-time must lie in 0..1, a share of the plain backbone's, got {target:g}"
        )
    numbers = {"--size": size, "--num-photos": num_photos, "--rounds": rounds}
    check_counts({**numbers, "--threads": threads})
    if bool(checkpoint) != bool(photos):
        raise UserError("errors are measured with --checkpoint and --photos: give both or none")


def report(chosen: Chosen, target: float) -> str:
    """The best plans of several budgets, the chosen one, and what it takes as a whole."""
    budgets = sorted({*BUDGETS, target}, reverse=True)
    rows = [(f"{b:g}", best(chosen.front, b)) for b in budgets if chosen.front[0].time <= b]
    rows += [("fastest", chosen.front[0]), ("**chosen**", chosen.plan)]
    cells = [
        [name, f"{plan.time:.2f}", f"{math.sqrt(plan.error):.3f}", as_text(chosen.keep_of(plan))]
        for name, plan in rows
    ]
    table = markdown_table(["budget", "estimated time", "estimated error", "--ltm"], cells)
    whole, estimate = chosen.time, chosen.plan
    verdict = (
        f"chosen: time {whole.median:.2f} ({whole.low:.2f} - {whole.high:.2f}) of the plain "
        f"model's as a whole, {estimate.time:.2f} estimated"
    )
    if chosen.error is not None:
        verdict += (
            f"; error {math.sqrt(chosen.error):.3f}, {math.sqrt(estimate.error):.3f} estimated"
        )
    return "\n".join([table, "", verdict, "", f"--ltm '{as_text(chosen.keep)}'"])


def _save(chosen: Chosen, metadata: dict, stem: Path) -> list[Path]:
    """JSON with everything, and a picture of error over time."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")]
    summary = dict(
        keep=as_text(chosen.keep),
        time=asdict(chosen.time),
        error=chosen.error,
        plan=asdict(chosen.plan),
    )
    front = [asdict(p) | dict(keep=as_text(chosen.keep_of(p))) for p in chosen.front]
    options = [[asdict(o) for o in unit] for unit in chosen.options]
    data = metadata | dict(chosen=summary, rest=chosen.rest, units=options, frontier=front)
    files[0].write_text(json.dumps(data, indent=1) + "\n")
    _draw(chosen, files[1], metadata["error"])
    return files


def _draw(chosen: Chosen, path: Path, basis: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    front = chosen.front
    axis.plot([p.time for p in front], [math.sqrt(p.error) for p in front], label="best plans")
    axis.plot(chosen.plan.time, math.sqrt(chosen.plan.error), "o", color="#ee6677", label="chosen")
    if chosen.error is not None:
        whole = (chosen.time.median, math.sqrt(chosen.error))
        axis.plot(*whole, "x", color="#ee6677", label="chosen, measured as a whole")
    axis.set_xlabel("time, share of the plain model's")
    axis.set_ylabel("error")
    axis.set_title(basis, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)

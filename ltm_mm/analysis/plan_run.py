"""What ``tools/plan.py`` does: measure, solve, print, draw, check."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints import load_into
from ..engine.errors import UserError
from ..presets import PRESETS, resolve_plan
from .latency import Clock, interleave, ratios
from .plan import Counts, Option, Plan, best, frontier, measure, options_of
from .report import machine, markdown_line
from .rivals import build_models

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
MOST_IMAGES = 8


def make_plan(
    config: str,
    target_latency: float,
    size: Sequence[int] = (800, 1216),
    checkpoint: str | None = None,
    images: str | None = None,
    device: str = "cpu",
    rounds: int = 5,
    out: str = "work_dirs/plan",
    trust_checkpoint: bool = False,
    clock: Clock = time.perf_counter,
) -> Plan:
    """Find the plan of the least damage within a latency budget, on this machine.

    Args:
        config: see :func:`.rivals.build_models`.
        target_latency: budget as a share of the plain backbone's latency, 0..1.
        size: height and width of the images in pixels.
        checkpoint, images: a trained model and a folder of images that damage is measured
            with; None: it is told from token counts.
        device: 'cpu' or 'cuda'.
        rounds: rounds of timing that count.
        out: folder for JSON and picture.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        clock: seconds so far.

    Raises:
        UserError: for a mistake in the input, or if no plan is that fast.
    """
    image = (size[0], size[1])
    _check(target_latency, image, checkpoint, images, device, rounds)
    pictures = _pictures(images, image) if images else []
    backbones, window = _backbones(config, image, checkpoint, trust_checkpoint, device)
    options, rest = measure(backbones, image, rounds, clock, pictures)
    front = frontier(options, rest)
    basis = (
        f"measured on {len(pictures)} images: relative change of the stages' output"
        if pictures
        else "told from token counts (a checkpoint and --images would measure it)"
    )
    print(f"\ndamage: {basis}\n")
    print(_table(front, options, rest, window, target_latency), flush=True)
    stem = Path(out, Path(config.rpartition("::")[2]).stem)
    chosen = best(front, target_latency)
    slots = chosen.slots(window)
    measured = None
    if slots != "none":
        measured = _measured(config, slots, image, device, rounds, clock)
    about = dict(machine=machine(), config=config, size=image, damage=basis)
    result = dict(chosen=asdict(chosen) | dict(slots=slots, measured=measured), rest=rest)
    plans = [asdict(p) | dict(slots=p.slots(window)) for p in front]
    stages = [[asdict(o) for o in stage] for stage in options]
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | result | dict(frontier=plans, stages=stages), indent=1)
    stem.with_suffix(".json").write_text(text + "\n")
    _draw(stem.with_suffix(".png"), front, chosen, _presets(options, rest), basis)
    said = "" if measured is None else f", {measured:.2f} measured as a whole"
    print(f"\nestimated latency {chosen.latency:.2f} of the plain backbone's{said}")
    print(f"  {stem.with_suffix('.json')}\n  {stem.with_suffix('.png')}\n\n--ltm '{slots}'")
    return chosen


def _check(
    budget: float,
    size: tuple[int, int],
    checkpoint: str | None,
    images: str | None,
    device: str,
    rounds: int,
) -> None:
    if not 0 < budget <= 1:
        raise UserError(
            f"--target-latency must lie in 0..1, a share of the plain backbone's, got {budget:g}"
        )
    if min(size) < 1 or rounds < 1:
        raise UserError(f"--size and --rounds must be 1 or more, got {size} and {rounds}")
    if bool(checkpoint) != bool(images):
        raise UserError("damage is measured with --checkpoint and --images: give both or none")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")


def _backbones(
    config: str, size: tuple[int, int], checkpoint: str | None, trust: bool, device: str
) -> tuple[dict[int, tuple[nn.Module, list[Counts]]], int]:
    """A backbone per option, the plain one first, and the window's side."""
    (plain,) = build_models(config, ["none"], (), size).values()
    if not hasattr(plain, "stages") or not hasattr(plain, "plan"):
        raise UserError(f"{config}: {type(plain).__name__} has no stages to plan for")
    depths = [len(counts) for counts in plain.plan]
    window = max(count for counts in plain.plan for count in counts)
    pairs = options_of(2, window, math.ceil(window / 2))
    plans = [_as_text(depths, pair, window) for pair in pairs[1:]]
    models = build_models(config, ["none", *plans], (), size)
    found = {}
    for k, model in enumerate(models.values()):
        if checkpoint is not None:
            load_into(model, checkpoint, trust=trust)
        found[k] = (model.to(device).eval(), list(model.plan))
    return found, window


def _as_text(depths: Sequence[int], pair: Counts, window: int) -> str:
    """The plan that merges all stages so, as ``--ltm`` takes it."""
    counts = [(pair[0], *(pair[1],) * (depth - 1))[:depth] for depth in depths]
    return Plan(tuple(counts), 0, 0).slots(window)


def _pictures(folder: str, size: tuple[int, int]) -> list[Tensor]:
    """The first images of a folder ``(1, 3, *size)``, normalised with ImageNet's figures."""
    from ..visualization.run import find_images

    found = []
    for file in find_images(folder)[:MOST_IMAGES]:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB").resize((size[1], size[0])), np.float32)
        pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        found.append(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    return found


def _measured(
    config: str, slots: str, size: tuple[int, int], device: str, rounds: int, clock: Clock
) -> float:
    """Latency of the chosen plan's whole backbone, as a share of the plain one's."""
    models = build_models(config, ["none", slots], (), size)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            model(images)
        if device == "cuda":
            torch.cuda.synchronize()

    for model in models.values():
        model.to(device).eval()
    runs = {name: lambda model=model: run(model) for name, model in models.items()}
    plain, merged = interleave(runs, rounds, 1, clock).values()
    return 1 / ratios(plain, merged).median


def _presets(options: Sequence[Sequence[Option]], rest: float) -> dict[str, Plan]:
    """The presets as far as they are among the options."""
    found = {}
    depths = [len(stage[0].counts) for stage in options]
    window = max(count for stage in options for count in stage[0].counts)
    for name in PRESETS:
        plan = [p[:d] for p, d in zip(resolve_plan(name, depths, window), depths, strict=True)]
        pairs = zip(options, plan, strict=True)
        chosen = [o for stage, counts in pairs for o in stage if o.counts == counts]
        if len(chosen) == len(options):
            latency = rest + sum(o.latency for o in chosen)
            found[name] = Plan(
                tuple(o.counts for o in chosen), latency, sum(o.damage for o in chosen)
            )
    return found


def _table(
    front: Sequence[Plan],
    options: Sequence[Sequence[Option]],
    rest: float,
    window: int,
    target: float,
) -> str:
    """The trade-off: the best plan of several budgets, and the presets."""
    budgets = sorted({*BUDGETS, target}, reverse=True)
    rows = [(f"{b:g}", best(front, b)) for b in budgets if front[0].latency <= b]
    rows.append(("fastest", front[0]))
    rows += [(f"'{name}'", plan) for name, plan in _presets(options, rest).items()]
    lines = [markdown_line(["budget", "latency", "damage", "slots"])]
    lines.append(markdown_line(["---"] * 4))
    for name, plan in rows:
        cells = [name, f"{plan.latency:.2f}", f"{math.sqrt(plan.damage):.3f}", plan.slots(window)]
        lines.append(markdown_line(cells))
    return "\n".join(lines)


def _draw(
    path: Path, front: Sequence[Plan], chosen: Plan, presets: dict[str, Plan], basis: str
) -> None:
    """Damage over latency: the best plans, the presets, and the chosen plan."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([p.latency for p in front], [math.sqrt(p.damage) for p in front], ".-", label="best")
    for name, plan in presets.items():
        place = (plan.latency, math.sqrt(plan.damage))
        axis.plot(*place, "s", color="#bbbbbb")
        axis.annotate(f" '{name}'", place)
    axis.plot(chosen.latency, math.sqrt(chosen.damage), "o", color="#ee6677", label="chosen")
    axis.set_xlabel("latency, share of the plain backbone's")
    axis.set_ylabel("damage (root of the sum of squares)")
    axis.set_title(basis, fontsize=9)
    axis.legend()
    figure.savefig(path, dpi=120)

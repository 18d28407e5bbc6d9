"""The paper's operating points (arXiv 2407.15219), and what the preset 'paper' makes of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import timm
import torch
from torch import nn

import ltm_mm.timm_models

from ..engine.errors import UserError
from .flops import count_macs
from .latency import interleave, ratios
from .latency import threads as use_threads


class Point(NamedTuple):
    """One line of the paper: our name of the model, pixels per side, GMACs plain and merged."""

    model: str
    size: int
    plain: float
    merged: float


POINTS = (
    Point("ltm_mobilevit_xs", 256, 0.70, 0.52),
    Point("ltm_mobilevit_s", 256, 1.40, 1.17),
    Point("ltm_efficientvit_b1", 224, 0.52, 0.44),
    Point("ltm_efficientvit_b1", 288, 0.86, 0.70),
    Point("ltm_vit_small", 224, 4.3, 3.7),
    Point("ltm_vit_base", 224, 17.6, 12.9),
    Point("ltm_swin_tiny", 224, 4.5, 3.8),
    Point("ltm_swin_base", 224, 15.4, 12.0),
)


class Found(NamedTuple):
    """What a point's models have here: GMACs (classifier included) and parameters, in millions."""

    plain_macs: float
    macs: float
    plain_parameters: float
    parameters: float
    speedup: float | None  # of one forward pass; median over the rounds


def measure(point: Point, rounds: int = 0, batch: int = 1) -> Found:
    """Count one of the paper's points, and time it.

    Args:
        point: one of ``POINTS``.
        rounds: forward passes of timm's plain model and of the merged one that are timed
            in turn; 0: none.
        batch: images per timed pass.

    Returns:
        The figures of both models, with the preset 'paper'.
    """
    plain = timm.create_model(ltm_mm.timm_models.PLAIN[point.model]).eval()
    merged = timm.create_model(point.model, keep="paper").eval()
    one = torch.zeros(1, 3, point.size, point.size)
    macs = [count_macs(model, one).total / 1e9 for model in (plain, merged)]
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (plain, merged)]
    speedup = None
    if rounds:
        images = torch.randn(batch, *one.shape[1:])
        runs = {name: _pass(m, images) for name, m in (("plain", plain), ("merged", merged))}
        seconds = interleave(runs, rounds)
        speedup = ratios(seconds["plain"], seconds["merged"]).median
    return Found(*macs, *sizes, speedup)


def _pass(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model(images)

    return run


def to_markdown(points: Sequence[Point], found: Sequence[Found]) -> str:
    """The table of the README; starred figures are the paper's."""
    timed = any(f.speedup for f in found)
    head = ["model, pixels", "GMACs plain*", "LTM*", "GMACs plain", "`'paper'`"]
    head += ["parameters plain", "`'paper'`", *["speed-up"] * timed]
    lines = [head, ["---"] * len(head)]
    for point, f in zip(points, found, strict=True):
        name = point.model.removeprefix("ltm_").replace("_", "-")
        cells = [f"{name}, {point.size}", f"{point.plain:.4g}*", f"{point.merged:.4g}*"]
        cells += [f"{f.plain_macs:.2f}", f"{f.macs:.2f} ({f.macs / f.plain_macs:.2f}x)"]
        cells += [f"{f.plain_parameters:.2f} M", f"{f.parameters:.2f} M"]
        lines.append(cells + ([f"{f.speedup:.2f}x"] if f.speedup else []))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def print_paper_table(rounds: int = 0, batch: int = 1, threads: int | None = None) -> None:
    """What ``tools/flops.py`` does.

    Args:
        rounds, batch: see :func:`measure`.
        threads: CPU threads; None: as PyTorch chooses.

    Raises:
        UserError: for a number out of range.
    """
    if rounds < 0 or batch < 1:
        raise UserError(f"--rounds must be >= 0 and --batch >= 1, got {rounds} and {batch}")
    with use_threads(threads):
        print(to_markdown(POINTS, [measure(point, rounds, batch) for point in POINTS]))

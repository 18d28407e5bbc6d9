"""Compare the paper's operating points (arXiv 2407.15219) with ours: MACs and parameters.

python tools/flops.py                            # counts, in seconds
python tools/flops.py --rounds 20 --threads 2    # also the speed-up over timm's plain models
"""

import ltm_mm  # isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import timm
import torch
from torch import nn

from ltm_mm.analysis.benchmark.flops import count_macs
from ltm_mm.analysis.benchmark.latency import interleave, ratios
from ltm_mm.analysis.benchmark.latency import threads as use_threads
from ltm_mm.analysis.benchmark.report import markdown_table
from ltm_mm.errors import UserError, clean_errors
from ltm_mm.timm_models import PLAIN


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


class PointFigures(NamedTuple):
    """GMACs (with classifier) and parameters in millions that a point's models have here."""

    plain_macs: float
    macs: float
    plain_parameters: float
    parameters: float
    speedup: float | None  # of one forward pass; median over the rounds


def measure(point: Point, rounds: int = 0, batch: int = 1) -> PointFigures:
    """Count one of the paper's points, and time it.

    Args:
        point: one of ``POINTS``.
        rounds: forward passes of timm's plain model and of the merged one that are timed
            in turn; 0: none.
        batch: images per timed pass.

    Returns:
        The figures of both models, with the preset 'paper'.
    """
    plain = timm.create_model(PLAIN[point.model]).eval()
    merged = timm.create_model(point.model, keep="paper").eval()
    one = torch.zeros(1, 3, point.size, point.size)
    plain_macs, macs = (count_macs(model, one).total / 1e9 for model in (plain, merged))
    plain_size, size = (
        sum(p.numel() for p in model.parameters()) / 1e6 for model in (plain, merged)
    )
    speedup = None
    if rounds:
        images = torch.randn(batch, *one.shape[1:])
        runs = {name: _forward_run(m, images) for name, m in (("plain", plain), ("merged", merged))}
        seconds = interleave(runs, rounds)
        speedup = ratios(seconds["plain"], seconds["merged"]).median
    return PointFigures(plain_macs, macs, plain_size, size, speedup)


def _forward_run(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model(images)

    return run


def to_markdown(points: Sequence[Point], figures: Sequence[PointFigures]) -> str:
    """The table of docs/benchmarks.md; starred figures are the paper's."""
    timed = any(f.speedup for f in figures)
    head = ["model, pixels", "GMACs plain*", "LTM*", "GMACs plain", "`'paper'`"]
    head += ["parameters plain", "`'paper'`", *["speed-up"] * timed]
    lines = []
    for point, f in zip(points, figures, strict=True):
        name = point.model.removeprefix("ltm_").replace("_", "-")
        cells = [f"{name}, {point.size}", f"{point.plain:.4g}*", f"{point.merged:.4g}*"]
        cells += [f"{f.plain_macs:.2f}", f"{f.macs:.2f} ({f.macs / f.plain_macs:.2f}x)"]
        cells += [f"{f.plain_parameters:.2f} M", f"{f.parameters:.2f} M"]
        lines.append(cells + ([f"{f.speedup:.2f}x"] if f.speedup else []))
    return markdown_table(head, lines)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Compare the preset 'paper' with the paper (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("--rounds", type=int, default=0, help="timed passes of each model; 0: no timing [0]")
    add("--batch", type=int, default=1, help="images per timed pass [1]")
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and print the table."""
    args = parse_args()
    with clean_errors(debug=args.debug):
        if args.rounds < 0 or args.batch < 1:
            raise UserError(
                f"--rounds must be >= 0 and --batch >= 1, got {args.rounds} and {args.batch}"
            )
        with use_threads(args.threads):
            print(to_markdown(POINTS, [measure(p, args.rounds, args.batch) for p in POINTS]))


if __name__ == "__main__":
    main()

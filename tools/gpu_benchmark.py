"""Run all GPU measurements in less than ten minutes; see docs/benchmarks.md.

python tools/gpu_benchmark.py --out work_dirs/gpu
"""

import os

# Also for child processes: PyTorch's profiler logs a lot when it starts.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse
import sys

from ltm_mm.arguments import Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Run the GPU measurements, part by part, within a time limit")
    add = parser.add
    add(
        "--parts",
        nargs="+",
        default=[],
        metavar="PART",
        help="environment, tests, backbones, compiled, models, profile, training [all]",
    )
    add(
        "--budget",
        type=int,
        metavar="SECONDS",
        help="limit per part; the rest is skipped [each part's own, less than ten minutes in all]",
    )
    add("--rounds", default=20)
    add(
        "--dry-run",
        action="store_true",
        help="run all parts on the CPU: narrow models, small images, one round",
    )
    add("--out", default="work_dirs/gpu", help="JSON per part, tables.md [%(default)s]")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    well = run_tool(parse_args(), "ltm_mm.analysis.benchmark.gpu.run:run_gpu_benchmark")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()

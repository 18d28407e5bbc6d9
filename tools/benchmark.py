"""Time, memory and work of a backbone or a whole model, side by side with its baselines.

python tools/benchmark.py ltm-swin-t --against mmdet-swin --ltm none balanced fast
"""

import os

# PyTorch's profiler, which counts the CPU's memory, says at start that there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.analysis.benchmark.run import run_benchmark
from ltm_mm.errors import clean_errors
from ltm_mm.families import NAMED


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Measure a backbone or a whole model (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add(
        "config",
        help=f"a file, mmdet::PATH, mmseg::PATH, or a backbone of ours: {NAMED}",
    )
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="BASELINE",
        help="plain (ours without merging), mmdet-swin, timm, or another config; ratios are "
        "against the first",
    )
    add(
        "--ltm",
        nargs="+",
        default=[],
        metavar="KEEP",
        help="measure these plans: none, light, balanced, fast, paper, tokens per window (25) or "
        "a share of them (0.5), or one entry per stage such as "
        "'(None, None, (None, 25, 25, 25, 25, 25), None)' [as the config has it]",
    )
    add("--whole-model", action="store_true", help="with neck and heads, not the backbone alone")
    add(
        "--size",
        nargs="+",
        type=int,
        default=[800, 1216],
        metavar="H W",
        help="pixels; several pairs are measured one after the other [800 1216]",
    )
    add(
        "--shrunk",
        action="store_true",
        help="also the plain model on images so small that it takes as long as each merging one",
    )
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="images per pass [1]")
    add("--rounds", type=int, default=10, help="rounds that count [10]")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="[cpu]")
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--amp", choices=["fp16", "bf16"], help="mixed precision")
    add("--compile", action="store_true", help="torch.compile the backbones")
    add("--channels-last", action="store_true", help="that memory format")
    add(
        "--runtime",
        nargs="+",
        default=[],
        choices=["onnxruntime", "openvino", "openvino-bf16", "openvino-int8"],
        metavar="RUNTIME",
        help="export the models, and time the files beside them, too: onnxruntime, openvino, "
        "openvino-bf16, openvino-int8",
    )
    add("--train-step", action="store_true", help="also forward, backward and optimiser step")
    add(
        "--cpu-time",
        action="store_true",
        help="the process's CPU seconds, not wall time: for a machine that others use, "
        "with --threads 1",
    )
    add(
        "--out",
        default="work_dirs/benchmark",
        metavar="DIR",
        help="JSON and picture [%(default)s]",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        run_benchmark(**args)


if __name__ == "__main__":
    main()

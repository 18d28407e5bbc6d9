"""Measure time, memory and MACs of a backbone or a whole model next to its baselines.

python tools/benchmark.py ltm-swin-t --against mmdet-swin --ltm none balanced fast
"""

import os

# PyTorch's profiler, which counts the CPU's memory, logs at start that there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CONFIG_OR_BACKBONE, KEEP, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Measure time, memory and MACs of a backbone or a whole model")
    add = parser.add
    add("config", help=CONFIG_OR_BACKBONE)
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="BASELINE",
        help="plain (ours without merging), mmdet-swin, timm, or another config; the first is the "
        "reference for ratios",
    )
    add("--ltm", nargs="+", default=[], help=f"plans to measure: {KEEP} [the config's]")
    add("--detail")
    add("--whole-model", action="store_true", help="with neck and heads [the backbone alone]")
    add(
        "--size",
        nargs="+",
        type=int,
        metavar="H W",
        help="image size in pixels; several pairs are measured in turn [what the config's test "
        "pipeline makes of a 3:2 photo; 800 1216 without a pipeline]",
    )
    add(
        "--shrunk",
        dest="equal_time_image",
        action="store_true",
        help="also the plain model on smaller images of equal time",
    )
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="images per pass [1]")
    add("--rounds", default=10)
    add("--device")
    add("--threads")
    add("--amp", choices=["fp16", "bf16"], help="mixed precision")
    add(
        "--compile",
        nargs="?",
        const="default",
        choices=["default", "reduce-overhead", "max-autotune"],
        metavar="MODE",
        help="torch.compile the backbones [default]; reduce-overhead: with CUDA graphs",
    )
    add("--channels-last", action="store_true", help="use the channels_last memory format")
    add(
        "--runtime",
        nargs="+",
        default=[],
        choices=["onnxruntime", "openvino", "openvino-bf16", "openvino-int8"],
        metavar="RUNTIME",
        help="also export the models and time the files: onnxruntime, openvino, openvino-bf16, "
        "openvino-int8",
    )
    add("--train-step", action="store_true", help="also time forward, backward and optimiser step")
    add("--cpu-time")
    add("--out", default="work_dirs/benchmark")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    run_tool(parse_args(), "ltm_mm.analysis.benchmark.run:run_benchmark")


if __name__ == "__main__":
    main()

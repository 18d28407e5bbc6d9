"""Learn what merging loses in your model, on any photos; no labels needed.

python tools/learn.py CONFIG CHECKPOINT PHOTOS --ltm fast --out learned.pth
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import KEEP, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Train a merging model to match the same model without merging")
    add = parser.add
    add("config")
    add("checkpoint", help="checkpoint of the trained model")
    add(
        "photos",
        nargs="?",
        help="a folder of photos, without labels [the images of the config's train set]",
    )
    add(
        "--ltm",
        nargs="+",
        default=["light", "balanced", "fast"],
        help=f"one plan, or several that share what is learned: {KEEP} [light balanced fast]",
    )
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="file for what is learned, e.g. learned.pth",
    )
    add(
        "--train",
        choices=["detail", "weights", "all"],
        help="detail: a thin block per merging Swin block, weights are frozen; weights: no detail, "
        "no extra time; all: both [detail for several plans, weights for light or balanced, "
        "all for any other]",
    )
    add("--steps", type=int, default=300, help="optimiser steps [%(default)s]")
    add("--lr", type=float, help="learning rate of the weights [chosen for network and plan]")
    add("--batch-size", type=int, default=2, help="crops per step [%(default)s]")
    add("--crop", type=int, default=320, help="side of the crops in pixels [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--resume", action="store_true", help="continue an interrupted run with this --out")
    add("--rounds")
    add("--threads")
    add("--device")
    add("--trust-checkpoint")
    add("--cfg-options")
    # Options may appear between the positional arguments, one of which is optional.
    return parser.parse_intermixed_args()


def main() -> None:
    """Parse the arguments and learn."""
    run_tool(parse_args(), "ltm_mm.analysis.learning:run_learning")


if __name__ == "__main__":
    main()

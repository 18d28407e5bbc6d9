"""Evaluate a detector or segmentor, and draw its predictions.

python tools/test.py CONFIG CHECKPOINT --show-dir pictures
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CHECKPOINT_OR_EXPORTED, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Evaluate a detector or segmentor")
    add = parser.add
    add("config")
    add("checkpoint", help=CHECKPOINT_OR_EXPORTED)
    add("--work-dir", metavar="DIR", help="logs and metrics [work_dirs/<config's name>]")
    add(
        "--out",
        metavar="FILE",
        help="write predictions: a .pkl file, with mmseg also a folder",
    )
    add("--show-dir", metavar="DIR", help="write pictures of the predictions")
    add("--bf16", action="store_true", help="compute in bfloat16; .xml files only")
    add("--tta", action="store_true", help="test-time augmentation, as set up in the config")
    add("--trust-checkpoint")
    add("--ltm")
    add("--detail")
    add("--cfg-options")
    add("--launcher")
    add("--local_rank", "--local-rank")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and test."""
    run_tool(parse_args(), "ltm_mm.engine:evaluate", "ltm_mm.engine:leave_ranks")


if __name__ == "__main__":
    main()

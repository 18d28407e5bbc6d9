"""Predict on photos, folders and videos; write pictures, and COCO results or label maps.

python tools/predict.py CONFIG CHECKPOINT photos --out-dir predictions
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CHECKPOINT_OR_EXPORTED, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Predict on photos, folders and videos")
    add = parser.add
    add("config")
    add("checkpoint", help=CHECKPOINT_OR_EXPORTED)
    add("sources", nargs="+", metavar="photo", help="photos, folders of photos, videos")
    add("--out-dir", metavar="DIR", help="results folder [work_dirs/<config's name>/predict]")
    add("--batch-size", type=int, default=1, metavar="N", help="photos per pass, of one size [1]")
    add("--device")
    add("--score-thr", help="minimum score of objects [0.3]")
    add("--no-pictures", dest="pictures", action="store_false", help="draw nothing")
    add("--trust-checkpoint")
    add("--ltm")
    add("--detail")
    add("--cfg-options")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and predict."""
    run_tool(parse_args(), "ltm_mm.inference:predict")


if __name__ == "__main__":
    main()

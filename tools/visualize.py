"""Draw merge maps, and predictions with and without merging.

python tools/visualize.py CONFIG CHECKPOINT photo.jpg --out-dir pictures
"""

import argparse
import sys
from pathlib import Path

# Files next to this one must not hide installed modules of the same name (test, coverage, ...).
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

from ltm_mm.arguments import Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Draw what merging does on images")
    add = parser.add
    add("config")
    add(
        "checkpoint",
        nargs="?",
        help="checkpoint of a model or backbone, plain or merging [as at the start of training]",
    )
    add("image", help="an image or a folder of images")
    add("--out-dir", metavar="DIR", help="picture folder [work_dirs/<config's name>/visualize]")
    add(
        "--points",
        nargs="+",
        type=point,
        metavar="X,Y",
        help="pixels whose groups are shown [some in regions with detail]",
    )
    add(
        "--blocks",
        nargs="+",
        type=int,
        metavar="K",
        help="indices of the merging blocks to draw; -1: the last [early, middle, late]",
    )
    add("--score-thr")
    add("--device")
    add("--dpi", type=int, default=150, help="pixels per inch of the figures [150]")
    add("--seed", type=int, default=0, help="seed of newly initialised weights [0]")
    add("--trust-checkpoint")
    add("--ltm")
    add("--detail")
    add("--cfg-options")
    # Options may appear between the positional arguments, one of which is optional.
    return parser.parse_intermixed_args()


def point(text: str) -> tuple[int, int]:
    """``X,Y`` as two integers."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, such as 320,200") from None
    return x, y


def main() -> None:
    """Parse the arguments and draw."""
    run_tool(parse_args(), "ltm_mm.visualization:visualize")


if __name__ == "__main__":
    main()

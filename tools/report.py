"""Write one HTML page about a run, or a comparison of several.

python tools/report.py work_dirs/demo
python tools/report.py work_dirs/plain work_dirs/balanced --out comparison.html
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("One HTML page about one or several runs")
    add = parser.add
    add("work_dirs", nargs="+", metavar="work_dir", help="work dir of a training or test run")
    add("--out", metavar="FILE", help="the page [report.html in the first work dir]")
    add(
        "--images",
        nargs="+",
        metavar="FILE",
        help="images to draw [some of each run's validation set]",
    )
    add("--num-images", type=int, default=3, metavar="N", help="images to draw; 0: none [3]")
    add("--score-thr")
    add("--device")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and write the page."""
    run_tool(parse_args(), "ltm_mm.report:write_report")


if __name__ == "__main__":
    main()

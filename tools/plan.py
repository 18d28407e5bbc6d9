"""Find how many tokens each block keeps: least error within a time budget, on this machine.

python tools/plan.py ltm-swin-t --target-time 0.7 --checkpoint swin_t.pth --photos photos
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CONFIG_OR_BACKBONE, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Find a merging plan for a time budget")
    add = parser.add
    add("config", help=CONFIG_OR_BACKBONE)
    add(
        "--target-time",
        type=float,
        required=True,
        metavar="SHARE",
        help="time budget, relative to the plain backbone, such as 0.7",
    )
    add("--checkpoint", metavar="FILE", help="trained weights, to measure errors with")
    add("--photos", metavar="DIR", help="photos to measure errors on, without labels")
    add("--num-photos", default=8)
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="image size [what the config's test pipeline makes of a photo]",
    )
    add("--rounds")
    add("--threads")
    add("--device")
    add("--cpu-time")
    add("--detail")
    add("--out", default="work_dirs/plan")
    add("--trust-checkpoint")
    add("--cfg-options")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and plan."""
    run_tool(parse_args(), "ltm_mm.analysis.plan.run:make_plan")


if __name__ == "__main__":
    main()

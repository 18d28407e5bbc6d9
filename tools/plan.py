"""The merging plan of the least damage that meets a latency budget on this machine.

python tools/plan.py ltm-swin-t --target-latency 0.6 --size 800 1216
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"From a latency budget to a merging plan (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add(
        "config",
        help="a file, mmdet::PATH, mmseg::PATH, or a backbone of ours: ltm-swin-{t,s,b,l}, "
        "ltm-efficientvit-{b0..b3,l1..l3}",
    )
    add(
        "--target-latency",
        type=float,
        required=True,
        metavar="SHARE",
        help="of the plain backbone's latency, such as 0.6",
    )
    add("--size", nargs=2, type=int, default=[800, 1216], metavar=("H", "W"), help="[800 1216]")
    add("--checkpoint", metavar="FILE", help="a trained model's, to measure the damage with")
    add("--images", metavar="FOLDER", help="a few images, to measure the damage on")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="[cpu]")
    add("--rounds", type=int, default=5, help="rounds of timing that count [5]")
    add("--out", default="work_dirs/plan", metavar="DIR", help="JSON and picture [%(default)s]")
    add(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that hold more than weights; that can run code from them",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and plan."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        from ltm_mm.analysis.plan_run import make_plan

        make_plan(**args)


if __name__ == "__main__":
    main()

"""How many tokens each block keeps: the least error within a time budget, on this machine.

python tools/plan.py ltm-swin-t --target-time 0.7 --checkpoint swin_t.pth --photos photos
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import ConfigOptions
from ltm_mm.errors import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"From a time budget to a merging plan (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("config", help="a file, mmdet::PATH, mmseg::PATH, or a backbone such as ltm-swin-t")
    add(
        "--target-time",
        type=float,
        required=True,
        metavar="SHARE",
        help="of the plain backbone's time, such as 0.7",
    )
    add("--checkpoint", metavar="FILE", help="a trained model's, to measure errors with")
    add("--photos", metavar="DIR", help="photos to measure errors on; no labels are needed")
    add("--num-photos", type=int, default=8, metavar="N", help="photos of the folder [8]")
    add("--size", nargs=2, type=int, default=[800, 1216], metavar=("H", "W"), help="[800 1216]")
    add("--rounds", type=int, default=5, help="rounds of timing that count [5]")
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="[cpu]")
    add(
        "--cpu-time",
        action="store_true",
        help="the process's CPU seconds, not wall time: for a machine that others use, with "
        "--threads 1",
    )
    add("--out", default="work_dirs/plan", metavar="DIR", help="JSON and picture [%(default)s]")
    add(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that hold more than weights; that can run code from them",
    )
    add("--cfg-options", nargs="+", action=ConfigOptions, metavar="KEY=VALUE", help="of the config")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and plan."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        from ltm_mm.analysis.plan.run import make_plan

        make_plan(**args)


if __name__ == "__main__":
    main()

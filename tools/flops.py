"""The paper's operating points: its multiply-accumulates and parameters beside ours.

python tools/flops.py                            # counts, in seconds
python tools/flops.py --rounds 20 --threads 2    # also the speed-up over timm's plain models
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.analysis.paper import print_paper_table
from ltm_mm.engine import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"The preset 'paper' beside the paper (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("--rounds", type=int, default=0, help="time so many forward passes of each model [0]")
    add("--batch", type=int, default=1, help="images per timed pass [1]")
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and print the table."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        print_paper_table(**args)


if __name__ == "__main__":
    main()

"""Write a backbone or a whole segmentor as ONNX or as a program of torch.export.

python tools/export.py ltm-swin-t --ltm balanced --format onnx --check
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.analysis.baselines import NAMED
from ltm_mm.engine import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Export with a dynamic batch, height and width (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add(
        "config",
        help=f"a file, mmdet::PATH, mmseg::PATH, or a backbone of ours: {NAMED}",
    )
    add(
        "checkpoint",
        nargs="?",
        help="a trained model's or backbone's file, plain or merging [random weights]",
    )
    add("--format", choices=["onnx", "torch"], default="onnx", help="[onnx]")
    add(
        "--whole-model",
        action="store_true",
        help="a segmentor with its decode head: logits of the image's size [the backbone alone]",
    )
    add(
        "--size",
        nargs=2,
        type=int,
        default=[512, 512],
        metavar=("H", "W"),
        help="what it is traced with; any other size works, too [512 512]",
    )
    add(
        "--ltm",
        metavar="KEEP",
        help="merge so: none, light, balanced, fast, paper, tokens per window (25) or a share of "
        "them (0.5), or one entry per stage such as "
        "'(None, None, (None, 25, 25, 25, 25, 25), None)' [as the config has it]",
    )
    add("--out", metavar="FILE", help="[work_dirs/export/<config's name>.onnx or .pt2]")
    add(
        "--check",
        action="store_true",
        help="run the file and compare it with the model at four sizes and two batches",
    )
    add(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that hold more than weights; that can run code from them",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_intermixed_args()


def main() -> None:
    """Parse the arguments and export."""
    args = vars(parse_args())
    args["size"] = tuple(args["size"])
    with clean_errors(debug=args.pop("debug")):
        from ltm_mm.export.run import export

        export(**args)


if __name__ == "__main__":
    main()

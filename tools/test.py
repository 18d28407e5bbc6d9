"""Evaluate a detector or segmentor and draw what it predicts.

python tools/test.py CONFIG CHECKPOINT --show-dir pictures
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import ConfigOptions, evaluate, leave_ranks
from ltm_mm.errors import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Evaluate a detector or segmentor (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("config", help="a file, or a config of an installed package: mmdet::PATH, mmseg::PATH")
    add(
        "checkpoint",
        help="a trained model's file; one without merging serves a merging model; or an exported "
        ".onnx, .xml or .pt2 file",
    )
    add("--work-dir", metavar="DIR", help="logs and metrics [work_dirs/<config's name>]")
    add("--out", metavar="FILE", help="write predictions: a .pkl file, with mmseg also a folder")
    add("--show-dir", metavar="DIR", help="write pictures of the predictions")
    add("--bf16", action="store_true", help="compute in bfloat16; .xml files only")
    add("--tta", action="store_true", help="test-time augmentation as the config sets it up")
    add(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that hold more than weights; that can run code from them",
    )
    add(
        "--ltm",
        metavar="KEEP",
        help="exchange the backbone for the token-merging one, and what it keeps: none, light, "
        "balanced, fast, paper, tokens per window (25) or a share of them (0.5), or one entry per "
        "stage such as '(None, None, (None, 25, 25, 25, 25, 25), None)'",
    )
    add(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="change the config: model.backbone.keep=fast test_dataloader.batch_size=4",
    )
    add("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and test."""
    args = vars(parse_args())
    args.pop("local_rank")  # torchrun says it through the environment
    with clean_errors(debug=args.pop("debug")):
        evaluate(**args)
        leave_ranks()


if __name__ == "__main__":
    main()

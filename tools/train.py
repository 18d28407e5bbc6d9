"""Train a detector or segmentor.

python tools/train.py CONFIG                                     # a file
python tools/train.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py --ltm balanced
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import ConfigOptions, leave_ranks, train
from ltm_mm.errors import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Train a detector or segmentor (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("config", help="a file, or a config of an installed package: mmdet::PATH, mmseg::PATH")
    add("--work-dir", metavar="DIR", help="logs and checkpoints [work_dirs/<config's name>]")
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from this checkpoint, without a value from the newest one in the work dir",
    )
    add("--checkpoint", metavar="FILE", help="weights to start from: of a backbone or whole model")
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
        "--ib",
        metavar="BOUND",
        help="add the information-bottleneck loss on merged tokens: paper or variational; none "
        "takes it out of the config",
    )
    add("--amp", action="store_true", help="mixed precision (GPU)")
    add("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch")
    add(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="change the config: model.backbone.keep=fast train_dataloader.batch_size=4",
    )
    add("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and train."""
    args = vars(parse_args())
    args.pop("local_rank")  # torchrun says it through the environment
    with clean_errors(debug=args.pop("debug")):
        train(**args)
        leave_ranks()


if __name__ == "__main__":
    main()

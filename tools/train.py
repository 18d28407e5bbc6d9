"""Train a detector or segmentor.

python tools/train.py CONFIG                                     # a file
python tools/train.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py --ltm balanced
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Train a detector or segmentor")
    add = parser.add
    add("config")
    add("--work-dir", metavar="DIR", help="logs and checkpoints [work_dirs/<config's name>]")
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value, from the newest in the work dir",
    )
    add("--checkpoint", metavar="FILE", help="initial weights of a backbone or a whole model")
    add("--trust-checkpoint")
    add("--ltm")
    add("--detail")
    add(
        "--ib",
        metavar="BOUND",
        help="add the information-bottleneck loss on merged tokens: paper or variational; none "
        "removes it from the config",
    )
    add("--amp", action="store_true", help="mixed precision (GPU)")
    add("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    add("--cfg-options")
    add("--launcher")
    add("--local_rank", "--local-rank")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and train."""
    run_tool(parse_args(), "ltm_mm.engine:train", "ltm_mm.engine:leave_ranks")


if __name__ == "__main__":
    main()

"""What merging would change in your model on your photos; no labels needed.

python tools/fidelity.py CONFIG CHECKPOINT PHOTOS --ltm light balanced fast
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import ConfigOptions
from ltm_mm.errors import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Error of the maps, agreement with the plain model, work and time of merging "
        f"plans beside their baselines (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add(
        "config",
        help="a file, mmdet::PATH, mmseg::PATH, or a backbone of ours such as ltm-swin-t",
    )
    add("checkpoint", help="the trained model's file")
    add("photos", help="a photo, or a folder of photos; no labels are needed")
    add(
        "--ltm",
        nargs="+",
        default=["light", "balanced", "fast"],
        metavar="KEEP",
        help="plans: light, balanced, fast, paper, a number, or one entry per stage such as "
        "'(None, None, (None, 25, 25, 25, 25, 25), None)' [light balanced fast]",
    )
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="bring photos to this size after the config's test pipeline [as that leaves them]",
    )
    add("--num-photos", type=int, default=32, metavar="N", help="photos of the folder [32]")
    add("--rounds", type=int, default=5, help="rounds of timing that count; 0: no timing [5]")
    add(
        "--baselines",
        nargs="*",
        default=["image", "pooling", "tome"],
        metavar="NAME",
        help="image (plain on a smaller image of the same time), pooling, tome (of a ViT) [all]",
    )
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--metric", action="store_true", help="also the config's own metric on its test set")
    add(
        "--cpu-time",
        action="store_true",
        help="the process's CPU seconds, not wall time: for a machine that others use, with "
        "--threads 1",
    )
    add("--out", default="work_dirs/fidelity", metavar="DIR", help="JSON and picture [%(default)s]")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="[cpu]")
    add(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that hold more than weights; that can run code from them",
    )
    add(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="change the config: model.backbone.mask=soft",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        from ltm_mm.analysis.fidelity.tool import run_fidelity

        run_fidelity(**args)


if __name__ == "__main__":
    main()

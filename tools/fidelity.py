"""Measure what merging changes in your model on your photos; no labels needed.

python tools/fidelity.py CONFIG CHECKPOINT PHOTOS --ltm light balanced fast
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CONFIG_OR_BACKBONE, KEEP, Parser, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Error of the maps, agreement with the plain model, MACs and time of merging")
    add = parser.add
    add("config", help=CONFIG_OR_BACKBONE)
    add("checkpoint", help="checkpoint of the trained model")
    add("photos", help="a photo or a folder of photos, without labels")
    add(
        "--ltm",
        nargs="+",
        default=["light", "balanced", "fast"],
        help=f"plans to compare: {KEEP} [light balanced fast]",
    )
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="resize photos to this size after the config's test pipeline [no resizing]",
    )
    add("--num-photos", default=32)
    add("--rounds", help="timed rounds; 0: no timing [%(default)s]")
    add(
        "--baselines",
        nargs="*",
        default=["image", "pooling", "tome", "jpeg"],
        metavar="NAME",
        help="image (plain on a smaller image of equal time), pooling, tome (ViT only), jpeg "
        "(photos saved again as JPEG) [all]",
    )
    add("--threads")
    add("--metric", action="store_true", help="also the config's own metric on its test set")
    add("--cpu-time")
    add("--detail")
    add("--out", default="work_dirs/fidelity")
    add("--device")
    add("--trust-checkpoint")
    add("--cfg-options")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    run_tool(parse_args(), "ltm_mm.analysis.fidelity.tool:run_fidelity")


if __name__ == "__main__":
    main()

"""Predict on photos, folders and videos: pictures, and COCO results or label maps.

python tools/predict.py CONFIG CHECKPOINT photos --out-dir predictions
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse

from ltm_mm.engine import ConfigOptions, clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Predict on photos, folders and videos (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add("config", help="a file, or a config of an installed package: mmdet::PATH, mmseg::PATH")
    add(
        "checkpoint",
        help="a trained model's file, plain or merging; or an exported .onnx, .xml or .pt2 file",
    )
    add("sources", nargs="+", metavar="photo", help="photos, folders of photos, videos")
    add("--out-dir", metavar="DIR", help="for the results [work_dirs/<config's name>/predict]")
    add("--batch-size", type=int, default=1, metavar="N", help="photos at once, of one size [1]")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--score-thr", type=float, default=0.3, help="leave out objects below this score [0.3]")
    add("--no-pictures", dest="pictures", action="store_false", help="draw nothing")
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
        help="change the config: model.backbone.keep=fast",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and predict."""
    args = vars(parse_args())
    with clean_errors(debug=args.pop("debug")):
        from ltm_mm.inference import predict

        predict(**args)


if __name__ == "__main__":
    main()

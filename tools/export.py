"""Export a backbone, detector or segmentor to ONNX, OpenVINO, or a torch.export program.

python tools/export.py CONFIG CHECKPOINT --whole-model --format onnx --check
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse

from ltm_mm.arguments import CONFIG_OR_BACKBONE, KEEP, Parser, run_tool


class _List(argparse.Action):
    """Print and stop, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ltm_mm.export.heads import SUPPORTED

        for kind, outputs in SUPPORTED.items():
            print(f"{kind}\n    {outputs}")
        print("\neach is compared as ONNX, OpenVINO and .pt2 in tests/export/test_whole.py")
        parser.exit()


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser("Export with dynamic batch size, height and width")
    add = parser.add
    add("config", help=CONFIG_OR_BACKBONE)
    add(
        "checkpoint",
        nargs="?",
        help="checkpoint of a model or backbone, plain or merging [random weights]",
    )
    add("--format", choices=["onnx", "openvino", "torch"], default="onnx", help="[onnx]")
    add(
        "--whole-model",
        action="store_true",
        help="a detector or segmentor with its heads [the backbone alone]",
    )
    add(
        "--size",
        nargs=2,
        type=int,
        default=[512, 512],
        metavar=("H", "W"),
        help="image size for tracing; the file takes other sizes, too [512 512]",
    )
    add("--detail")
    add("--ltm", help=f"the merging plan: {KEEP} [the config's]")
    add(
        "--out",
        metavar="FILE",
        help="[work_dirs/export/<config's name>.onnx, .xml or .pt2]",
    )
    add(
        "--int8",
        nargs="?",
        type=int,
        const=300,
        metavar="IMAGES",
        help="quantise to 8 bits with NNCF, calibrated on this many images of the config's test "
        "data; needs --format openvino [300]",
    )
    add(
        "--check",
        action="store_true",
        help="run the file and compare it with the model at four sizes and two batch sizes; with "
        "--int8 also evaluate both on the config's test data",
    )
    add("--trust-checkpoint")
    add(
        "--list",
        action=_List,
        nargs=0,
        default=argparse.SUPPRESS,
        help="list the whole models that can be exported",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    """Parse the arguments and export."""
    run_tool(parse_args(), "ltm_mm.export.run:export")


if __name__ == "__main__":
    main()

"""A detector that always finds the same, and its files."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from ltm_mm.export import export_program, save_onnx, save_program
from ltm_mm.export.metadata import describe
from tests.conftest import ROOT

TRACED = (97, 131)
CONFIG = str(ROOT / "configs" / "ltm_swin_maskrcnn_shapes.py")


class Boxes(nn.Module):
    """A detector that finds the same two things in every image, one of them with a mask."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zero = image.mean(dim=(1, 2, 3))[:, None] * 0  # (B, 1)
        boxes = torch.tensor([[[10.0, 20, 50, 60], [70, 10, 90, 30], [0, 0, 0, 0]]])
        scores, labels = torch.tensor([[0.9, 0.6, 0.0]]), torch.tensor([[0, 1, -1]])
        masks = torch.zeros(1, 3, 28, 28)
        masks[:, 0, :, :14] = 1
        return (
            boxes + zero[..., None],
            scores + zero,
            labels + zero.long(),
            masks + zero[..., None, None],
        )


def write_boxes(path: Path) -> Path:
    """Write ``Boxes`` as an .onnx, .xml or .pt2 file, as of the config of the built-in shapes."""
    cfg = Config.fromfile(CONFIG)
    extra = dict(masks="box", mask_threshold=0.5, smallest=33)
    outputs = ["boxes", "scores", "labels", "masks"]
    preprocessor = nn.Module()
    preprocessor.data_preprocessor = nn.Module()
    preprocessor.data_preprocessor.mean = torch.tensor([1.0, 2, 3])
    preprocessor.data_preprocessor.std = torch.ones(3)
    preprocessor.data_preprocessor._channel_conversion = True
    metadata = describe(cfg, preprocessor, outputs, extra, "none")
    program = export_program(Boxes(), TRACED)
    if path.suffix == ".pt2":
        save_program(program, path, metadata)
    elif path.suffix == ".onnx":
        save_onnx(program, path, outputs, metadata)
    else:
        from ltm_mm.export.openvino import save_openvino

        save_openvino(program, path, outputs, metadata)
    return path

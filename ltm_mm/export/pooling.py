"""Pooling and resizing that a program for all sizes, and every runtime, can hold."""

import torch
from torch import Tensor, nn


class DynamicAdaptivePooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for maps of any size in one program.

    PyTorch's exporters know maps of one size only.

    Args:
        size: rows and columns of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, *size)``."""
        rows = _pooling_matrix(self.size[0], x.shape[2], x)  # (h, H)
        cols = _pooling_matrix(self.size[1], x.shape[3], x)  # (w, W)
        return torch.einsum("hy,bcyx,wx->bchw", rows, x, cols)


def _pooling_matrix(cells: int, length: int, like: Tensor) -> Tensor:
    """Means over the cells that PyTorch pools, which overlap by one where they do not fit."""
    cell = torch.arange(cells, device=like.device)[:, None]
    start = cell * length // cells
    end = ((cell + 1) * length + cells - 1) // cells
    place = torch.arange(length, device=like.device)[None, :]
    inside = ((place >= start) & (place < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


def antialiased(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(x, size, mode="bicubic", antialias=True)`` as two matrix products.

    ViT's position embedding is brought to the image's grid so. OpenVINO (2026.4) leaves the
    antialiasing out, without a word.
    """
    rows = _cubic_matrix(size[0], x.shape[2], x)  # (h, H)
    cols = _cubic_matrix(size[1], x.shape[3], x)  # (w, W)
    return torch.einsum("hy,bcyx,wx->bchw", rows, x, cols)


def _cubic_matrix(cells: int, length: int, like: Tensor) -> Tensor:
    """Weights of each pixel in each cell: Keys' cubic with a = -0.5, as wide as a cell."""
    scale = like.new_ones(1) * length / cells
    centre = (torch.arange(cells, device=like.device) + 0.5)[:, None] * scale
    place = (torch.arange(length, device=like.device) + 0.5)[None, :]
    x = ((place - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdim=True)


def replace_pooling(model: nn.Module) -> nn.Module:
    """Make every ``nn.AdaptiveAvgPool2d`` dynamic, in place; returns the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                rows, cols = (size, size) if size is None or isinstance(size, int) else size
                if rows is not None and cols is not None:
                    setattr(module, name, DynamicAdaptivePooling((rows, cols)))
    return model

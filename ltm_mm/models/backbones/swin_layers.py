"""Leaf modules of LTM-Swin: the MLP, and what lies before and between the stages.

Source: Swin Transformer (Liu et al., ICCV 2021); parameter names as in mmdet's and mmcv's
(Apache-2.0), so that checkpoints carry over; the code is our own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import CHUNK, is_unmodified, linear, run_linear, run_mlp, uses_onednn


def build_norm(cfg: dict, channels: int) -> nn.Module:
    """A normalisation layer from mmcv's kind of config; only other kinds than LN need mmcv."""
    options = dict(cfg)
    with _naming("norm_cfg", cfg):
        if options.pop("type") == "LN":
            trained = options.pop("requires_grad", True)
            return nn.LayerNorm(channels, **options).requires_grad_(trained)
        from mmcv.cnn import build_norm_layer

        return build_norm_layer(cfg, channels)[1]


def build_activation(cfg: dict) -> nn.Module:
    """An activation layer from mmcv's kind of config; only other kinds than GELU need mmcv."""
    if cfg == dict(type="GELU"):
        return nn.GELU()
    from mmcv.cnn import build_activation_layer

    with _naming("act_cfg", cfg):
        return build_activation_layer(cfg)


@contextmanager
def _naming(option: str, cfg: dict) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError) as error:
        reason = str(error.args[0]).splitlines()[0]
        raise ValueError(f"{option}={cfg!r} names no layer: {reason}") from error


class FeedForward(nn.Module):
    """The MLP of a block, with mmcv's parameter names.

    Args:
        dim: channels (C).
        hidden: channels of the hidden layer.
        act_cfg: activation layer.
        drop: dropout after each layer.
    """

    def __init__(self, dim: int, hidden: int, act_cfg: dict, drop: float) -> None:
        super().__init__()
        self.hidden = hidden
        first = nn.Sequential(nn.Linear(dim, hidden), build_activation(act_cfg), nn.Dropout(drop))
        self.layers = nn.Sequential(first, nn.Linear(hidden, dim), nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        hidden: Any = self.layers[0]
        first, act, drop = hidden
        if drop.p and self.training:
            return self.layers(x)
        return self.layers[2](run_mlp(first, act, self.layers[1], x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, padded at the bottom and right.

    Args:
        in_channels: channels of the image.
        dim: channels of the tokens (C).
        patch: pixels per patch side.
        norm_cfg: normalisation of the tokens; None: none.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(in_channels, dim, patch, patch)
        self.norm = build_norm(norm_cfg, dim) if norm_cfg else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, C_in, H, W)`` -> tokens ``(B, ceil(H/patch), ceil(W/patch), C)``."""
        bottom, right = ((n + self.patch - 1) // self.patch * self.patch - n for n in x.shape[2:])
        if torch.compiler.is_compiling() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.norm(self._project(x))

    def _project(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, H/patch, W/patch, C)``."""
        conv, p = self.projection, self.patch
        if not is_unmodified(conv, nn.Conv2d) or not uses_onednn(x, conv.weight):
            return conv(x).permute(0, 2, 3, 1)
        # Patches do not overlap: on the CPU a matrix product is three times as fast.
        patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        return linear(patches.flatten(3), conv.weight.flatten(1), conv.bias)


class PatchMerging(nn.Module):
    """Swin's fixed 2 x 2 downsampling between stages.

    Args:
        dim: channels that come in (C); twice as many go out.
        stride: tokens between neighbouring patches.
        norm_cfg: normalisation before the reduction; None: none.
    """

    def __init__(self, dim: int, stride: int, norm_cfg: dict | None) -> None:
        super().__init__()
        self.stride = stride
        self.norm = build_norm(norm_cfg, 4 * dim) if norm_cfg else nn.Identity()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, ceil(H/stride), ceil(W/stride), 2C)``."""
        height, width = ((n + self.stride - 1) // self.stride for n in x.shape[1:3])
        if torch.is_grad_enabled() or not uses_onednn(x, x):
            return self._reduced(x, height, width)
        out = x.new_empty(0)
        step = max(CHUNK // (4 * width * x.shape[3]), 1)
        for first in range(0, height, step):  # so that the patches stay in the cache
            last = min(first + step, height)
            lines = x[:, first * self.stride : (last - 1) * self.stride + 2]
            part = self._reduced(lines, last - first, width)
            if not first:
                out = part.new_empty(x.shape[0], height, *part.shape[2:])
            out[:, first:last] = part
        return out

    def _reduced(self, x: Tensor, height: int, width: int) -> Tensor:
        """Patches of ``height`` rows and ``width`` columns, each reduced to one token."""
        # As the reference: pad only what the last patch needs.
        bottom = (height - 1) * self.stride + 2 - x.shape[1]
        right = (width - 1) * self.stride + 2 - x.shape[2]
        if torch.compiler.is_compiling() or bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if torch.compiler.is_compiling() and self.stride == 2:  # slices would fix sizes
            x = x.view(x.shape[0], height, 2, width, 2, x.shape[3])
            x = x.permute(0, 1, 3, 5, 2, 4).flatten(3)
            return self.reduction(self.norm(x))
        corners = [x[:, i :: self.stride, j :: self.stride] for i in (0, 1) for j in (0, 1)]
        patches = [corner[:, :height, :width] for corner in corners]
        # The parameters are ordered (channel, row, column), as nn.Unfold's output is. Whole
        # tokens are copied faster, so rather the parameters change their order.
        plain = is_unmodified(self.norm, nn.LayerNorm) and is_unmodified(self.reduction)
        if not plain or self.norm.bias is None:
            return run_linear(self.reduction, self.norm(torch.stack(patches, -1).flatten(3)))
        norm: Any = self.norm
        x = torch.cat(patches, -1)
        scale, shift, weight = (
            p.unflatten(-1, (-1, 4)).mT.flatten(-2)
            for p in (norm.weight[None], norm.bias[None], self.reduction.weight)
        )
        return linear(F.layer_norm(x, x.shape[3:], scale[0], shift[0], norm.eps), weight)

"""torchvision's Swin and Swin V2 blocks as ours."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import is_unmodified, linear, run_linear
from ..layers import SwinView, WindowContext, attend, scaled_cosine
from ..layers.cpu_attention_mlp import FastMlp
from ..layers.swap_class import SwappedClass
from ..ops import ShiftedWindows
from .swin import MergedSwin, continuous_bias, hidden, is_instance_of, square


class TorchvisionSwinBlock(MergedSwin):
    """torchvision's ``SwinTransformerBlock``."""

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return is_instance_of(module, "torchvision", "SwinTransformerBlock")

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block."""
        down, right = block.attn.shift_size
        return ShiftedWindows(
            square(block.attn.window_size), max(down, right), (down > 0, right > 0)
        )

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """Attention and MLP."""
        return {block.attn: Attention, block.mlp: Mlp}

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        windows = TorchvisionSwinBlock.block_windows(self)
        down, right = windows.axes  # one window is not shifted along its side
        axes = (down and bool(x.shape[1] > windows.size), right and bool(x.shape[2] > windows.size))
        return self.run(x, replace(windows, axes=axes))

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.norm1,
            self.attn,
            self.stochastic_depth,
            self.norm2,
            self.mlp,
            self.stochastic_depth,
            hidden(self.mlp[0]),
            self.merge,
            self.POST_NORM,
            layouts={"": "grid", "attn": "grid"},
        )


class TorchvisionSwinV2Block(TorchvisionSwinBlock):
    """torchvision's ``SwinTransformerBlockV2``."""

    POST_NORM = True

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return is_instance_of(module, "torchvision", "SwinTransformerBlockV2")

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """Attention and MLP."""
        return {block.attn: AttentionV2, block.mlp: Mlp}


class Attention(SwappedClass):
    """``ShiftedWindowAttention`` for windows that are cut already."""

    def forward(self, x: Tensor, context: WindowContext | None = None) -> Tensor:
        """Windows ``(B * n, N, C)`` and their context; without, a grid as before."""
        if context is None:
            return super().forward(x)
        return attend(
            x,
            context,
            qkv=self.make_qkv,
            proj=lambda x: F.dropout(run_linear(self.proj, x), self.dropout, self.training),
            bias_table=self.bias_table(),
            num_heads=self.num_heads,
            scale=self.logit_factor(),
            dropout=self.attention_dropout if self.training else 0.0,
        )

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values ``(..., 3C)``."""
        return run_linear(self.qkv, x)

    def bias_table(self) -> Tensor:
        """``((2w - 1)**2, heads)``."""
        return self.relative_position_bias_table

    def logit_factor(self) -> float:
        """Scale of the logits."""
        return (self.qkv.weight.shape[1] // self.num_heads) ** -0.5


class AttentionV2(Attention):
    """The same of ``ShiftedWindowAttentionV2``."""

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values, whose products are scaled cosines."""
        return scaled_cosine(self.project(x), self.num_heads, self.logit_scale)

    def bias_table(self) -> Tensor:
        """Made by an MLP from positions."""
        return continuous_bias(self.cpb_mlp, self.relative_coords_table)

    def logit_factor(self) -> float:
        """1: the scale is in the queries."""
        return 1.0

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values; the keys' bias is not read."""
        bias = self.qkv.bias
        if bias is None:
            return run_linear(self.qkv, x)
        query, key, value = bias.chunk(3)
        if is_unmodified(self.qkv):
            return linear(x, self.qkv.weight, torch.cat((query, torch.zeros_like(key), value)))
        return self.qkv(x) - F.pad(key, (len(query), len(value)))


class Mlp(FastMlp):
    """torchvision's ``MLP`` of two layers."""

    LAYERS = ("0", "1", "3")
    IDENTITIES = ("2", "4")

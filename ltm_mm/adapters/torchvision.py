"""torchvision's Swin and Swin V2 blocks as ours (ours)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import linear, run_linear, untouched
from ..layers import SwinView, Where, WindowAttentionView, cosine
from ..layers.exchange import Exchanged
from ..layers.fast_block import FastMlp
from ..ops import ShiftedWindows
from .swin import MergedSwin, comes_from, continuous_bias, hidden, square, within


class TorchvisionSwinBlock(MergedSwin):
    """torchvision's ``SwinTransformerBlock``."""

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """Whether it is one."""
        return comes_from(module, "torchvision", "SwinTransformerBlock")

    @staticmethod
    def cut(block: nn.Module) -> ShiftedWindows:
        """The windows of a block."""
        down, right = block.attn.shift_size
        return ShiftedWindows(
            square(block.attn.window_size), max(down, right), (down > 0, right > 0)
        )

    @staticmethod
    def parts(block: nn.Module) -> dict[nn.Module, type[Exchanged]]:
        """Attention and MLP."""
        return {block.attn: Attention, block.mlp: Mlp}

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        windows = TorchvisionSwinBlock.cut(self)
        down, right = windows.axes  # one window is not shifted along its side
        axes = (down and x.shape[1] > windows.size, right and x.shape[2] > windows.size)
        return self.run(x, replace(windows, axes=axes))

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.norm1,
            within(self.attn, windows),
            self.stochastic_depth,
            self.norm2,
            self.mlp,
            self.stochastic_depth,
            hidden(self.mlp[0]),
            self.merge,
        )


class TorchvisionSwinV2Block(TorchvisionSwinBlock):
    """torchvision's ``SwinTransformerBlockV2``."""

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """Whether it is one."""
        return comes_from(module, "torchvision", "SwinTransformerBlockV2")

    @staticmethod
    def parts(block: nn.Module) -> dict[nn.Module, type[Exchanged]]:
        """Attention and MLP."""
        return {block.attn: AttentionV2, block.mlp: Mlp}

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return replace(super().view(windows), post_norm=True)


class Attention(Exchanged):
    """``ShiftedWindowAttention`` for windows that are cut already."""

    def forward(self, x: Tensor, where: Where | None = None) -> Tensor:
        """Windows ``(B * n, N, C)`` and where they lie; without, a grid as before."""
        return super().forward(x) if where is None else self.attention_view().run(x, where)

    def attention_view(self) -> WindowAttentionView:
        """What the attention is made of now."""
        return WindowAttentionView(
            self.qkv,
            self.proj,
            lambda x: F.dropout(x, self.dropout, self.training),
            self.relative_position_bias_table,
            self.num_heads,
            (self.qkv.weight.shape[1] // self.num_heads) ** -0.5,
            self.attention_dropout,
            self.training,
        )


class AttentionV2(Attention):
    """The same of ``ShiftedWindowAttentionV2``."""

    def attention_view(self) -> WindowAttentionView:
        """What the attention is made of now."""
        return WindowAttentionView(
            lambda x: cosine(self.project(x), self.num_heads, self.logit_scale),
            self.proj,
            lambda x: F.dropout(x, self.dropout, self.training),
            continuous_bias(self.cpb_mlp, self.relative_coords_table),
            self.num_heads,
            1.0,
            self.attention_dropout,
            self.training,
        )

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values; the keys' bias is not read."""
        bias = self.qkv.bias
        if bias is None:
            return run_linear(self.qkv, x)
        query, key, value = bias.chunk(3)
        if untouched(self.qkv):
            return linear(x, self.qkv.weight, torch.cat((query, torch.zeros_like(key), value)))
        return self.qkv(x) - F.pad(key, (len(query), len(value)))


class Mlp(FastMlp):
    """torchvision's ``MLP`` of two layers."""

    LAYERS = ("0", "1", "3")
    IDLE = ("2", "4")

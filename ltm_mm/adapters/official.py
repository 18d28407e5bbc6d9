"""The authors' Swin and Swin V2 blocks as ours, into whatever repository they were copied.

Source of the facts: microsoft/Swin-Transformer (MIT), its detection and segmentation forks, and
Mask2Former's ``modeling/backbone/swin.py``. The blocks are known by how they are built.
"""

import inspect
from typing import Any

from torch import Tensor

from ..layers import SwinView
from ..layers.cpu_attention_mlp import FastMlp, children
from ..ops import ShiftedWindows
from .swin import CosineAttention, MergedSwin, QkvAttention, as_grid, hidden, square

BLOCK = {"norm1", "attn", "drop_path", "norm2", "mlp"}
ATTENTION = {"qkv", "attn_drop", "proj", "proj_drop", "softmax"}
MLP = {"fc1", "act", "fc2", "drop"}
# Of a classifier's block, which knows its size, and of a detector's, which is told it.
FORWARD = (["self", "x"], ["self", "x", "mask_matrix"])


class OfficialSwinBlock(MergedSwin):
    """``SwinTransformerBlock`` with ``WindowAttention`` and ``Mlp``."""

    SWAPPED = {"attn": QkvAttention, "mlp": FastMlp}

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether a module is built like one."""
        return has_swin_parts(module, ATTENTION) and all(
            hasattr(module.attn, name)
            for name in ("relative_position_bias_table", "num_heads", "scale")
        )

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block."""
        return ShiftedWindows(square(block.window_size), square(block.shift_size))

    def forward(self, x: Tensor, mask_matrix: Tensor | None = None) -> Tensor:
        """``(B, H * W, C)`` -> ``(B, H * W, C)``; the shift's mask is not needed."""
        size = grid_size_of(self)
        if size[0] * size[1] != x.shape[1]:
            raise ValueError(f"{x.shape[1]} tokens are no grid of {size[0]} x {size[1]}")
        grid = as_grid(x, size)
        return self.run(grid, type(self).block_windows(self)).flatten(1, 2)

    @staticmethod
    def as_map(block: Any, args: tuple, out: Tensor) -> Tensor:
        """A block's output as ``(B, C, H, W)``."""
        return out.unflatten(1, grid_size_of(block)).permute(0, 3, 1, 2)

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.norm1,
            self.attn,
            self.drop_path,
            self.norm2,
            self.mlp,
            self.drop_path,
            hidden(self.mlp.fc1),
            self.merge,
            self.POST_NORM,
        )


class OfficialSwinV2Block(OfficialSwinBlock):
    """The same of Swin V2."""

    SWAPPED = {"attn": CosineAttention, "mlp": FastMlp}
    POST_NORM = True

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether a module is built like one."""
        return has_swin_parts(module, ATTENTION | {"cpb_mlp"}) and all(
            hasattr(module.attn, name)
            for name in ("relative_coords_table", "num_heads", "logit_scale", "q_bias", "v_bias")
        )


def grid_size_of(block: Any) -> tuple[int, int]:
    """H and W of a block's grid: a detector's stage tells its blocks before it calls them."""
    told = getattr(block, "H", None) is not None
    return (block.H, block.W) if told else tuple(block.input_resolution)


def has_swin_parts(module: Any, attention: set[str]) -> bool:
    """Whether a module has a Swin block's parts under the authors' names."""
    if children(module) != BLOCK or not hasattr(module, "window_size"):
        return False
    if children(module.attn) != attention or children(module.mlp) != MLP:
        return False
    taken = list(inspect.signature(type(module).forward).parameters)
    sized = hasattr(module, "input_resolution") or taken == FORWARD[1]
    return hasattr(module, "shift_size") and taken in FORWARD and sized

"""timm's Swin blocks as ours."""

from typing import Any

from torch import Tensor

from ..layers import SwinView
from ..layers.cpu_attention_mlp import FastTimmMlp
from ..ops import ShiftedWindows
from .swin import CosineAttention, MergedSwin, QkvAttention, hidden, is_instance_of, square


class TimmSwinBlock(MergedSwin):
    """timm's ``SwinTransformerBlock``."""

    SWAPPED = {"attn": QkvAttention, "mlp": FastTimmMlp}

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one; timm's of before 0.9 is the authors' own."""
        return is_instance_of(module, "timm", "SwinTransformerBlock") and hasattr(
            module, "drop_path1"
        )

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block: rolled first, padded then; no shift along one window."""
        down, right = block.shift_size
        size = square(block.window_size)
        return ShiftedWindows(size, max(down, right), (down > 0, right > 0), pad_first=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return self.run(x, TimmSwinBlock.block_windows(self))

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.norm1,
            self.attn,
            self.drop_path1,
            self.norm2,
            self.mlp,
            self.drop_path2,
            hidden(self.mlp.fc1),
            self.merge,
            self.POST_NORM,
            layouts={"": "rows", "norm1": "grid", "drop_path1": "grid"},
        )


class TimmSwinV2Block(TimmSwinBlock):
    """timm's ``SwinTransformerV2Block``."""

    SWAPPED = {"attn": CosineAttention, "mlp": FastTimmMlp}
    POST_NORM = True

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return is_instance_of(module, "timm", "SwinTransformerV2Block") and hasattr(
            module.attn, "relative_coords_table"
        )

"""mmdet's, mmseg's and mmpretrain's Swin blocks as ours."""

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import can_run_in_chunks, run_mlp
from ..layers import SwinView, WindowContext
from ..layers.cpu_attention_mlp import children, is_identity
from ..layers.swap_class import SwappedClass
from ..ops import ShiftedWindows
from .swin import MergedSwin, QkvAttention, as_grid, is_instance_of

PACKAGES = ("mmdet", "mmseg", "mmpretrain")


class MMSwinBlock(MergedSwin):
    """``SwinBlock`` of mmdet, mmseg or mmpretrain."""

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one, with the attention of Swin V1."""
        return any(is_instance_of(module, package, "SwinBlock") for package in PACKAGES) and (
            hasattr(module.attn.w_msa, "relative_position_bias_table")
        )

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block."""
        return ShiftedWindows(block.attn.window_size, block.attn.shift_size)

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """Attention and MLP."""
        swapped = {block.attn: Shifted, block.attn.w_msa: QkvAttention}
        plain = children(block.ffn) == {"layers", "dropout_layer", "gamma2"}
        return swapped | ({block.ffn: FFN} if plain and len(block.ffn.layers) == 3 else {})

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, H * W, C)``, (H, W) -> ``(B, H * W, C)``."""
        windows = self._windows(*hw_shape)
        grid = as_grid(x, hw_shape)
        if self.with_cp and x.requires_grad:
            grid = checkpoint(self.run, grid, windows, use_reentrant=False)
        else:
            grid = self.run(grid, windows)
        return grid.flatten(1, 2)

    def _windows(self, height: int, width: int) -> ShiftedWindows:
        windows = MMSwinBlock.block_windows(self)
        # mmpretrain's does not shift the windows of a grid that is as small as one.
        if not getattr(self.attn, "pad_small_map", True) and min(height, width) <= windows.size:
            if min(height, width) < windows.size:
                raise ValueError(
                    f"a map of {height} x {width} tokens is smaller than a window of "
                    f"{windows.size}: build the model with pad_small_map=True"
                )
            return ShiftedWindows(windows.size)
        return windows

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return MMView(
            self,
            windows,
            self.norm1,
            self.attn,
            self.attn.drop,
            self.norm2,
            lambda x: self.ffn(x, identity=x.new_zeros(())),
            nn.Identity(),  # is in `ffn`
            self.ffn.feedforward_channels,
            self.merge,
            layouts={"": "rows", "attn": "rows"},
        )


class MMView(SwinView):
    """As :class:`SwinView`; ``ffn`` adds what it updates."""

    block: Any

    def _add_mlp(self, x: Tensor) -> Tensor:
        return self.block.ffn(self.norm2(x), identity=x)


class Shifted(SwappedClass):
    """``ShiftWindowMSA`` for windows that are cut already."""

    def forward(self, query: Tensor, hw_shape: object) -> Tensor:
        """Windows ``(B * n, N, C)`` and where they lie; with anything else as before."""
        if not isinstance(hw_shape, WindowContext):
            return super().forward(query, hw_shape)
        return self.w_msa(query, hw_shape)


class FFN(SwappedClass):
    """mmcv's ``FFN`` of two layers on the fast path of ``kernels``."""

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """``(..., C)``, and what the result is added to (None: x; 0: nothing)."""
        first, second, last_drop = self.layers
        plain = (
            can_run_in_chunks(self)
            and is_identity(first[2])
            and is_identity(last_drop)
            and is_identity(self.gamma2)
        )
        if not plain or not self.add_identity:
            return super().forward(x, identity=identity)
        out = self.dropout_layer(run_mlp(first[0], first[1], second, x))
        if identity is not None and identity.ndim == 0:
            return out
        return out + (x if identity is None else identity)

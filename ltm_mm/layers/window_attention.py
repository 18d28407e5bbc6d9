"""Window attention of Swin, on windows of tokens or of slots.

Source: Swin (Liu et al., ICCV 2021); parameter names as in mmdet's Swin (Apache-2.0),
so that its checkpoints load. Slots, the four shift masks and the fused attention
are ours.
"""

import torch
from torch import Tensor, nn

from ..ops import (
    CHUNK,
    from_windows,
    offset_interpolation,
    pad_to_windows,
    relative_position_index,
    served,
    shift_masks,
    to_windows,
    window_attention,
    window_kinds,
)
from .linear import run_linear


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias.

    Args:
        dim: channels (C), a multiple of ``num_heads``.
        num_heads: attention heads (h).
        window: tokens per window side that the bias table is made for (w).
        slots: tokens per side of the windows that come in (s); less than ``window``
            after a merge.
        shift: cyclic shift that the windows were cut after, in tokens.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: logit scale; None: ``head_dim ** -0.5``.
        attn_drop: dropout of attention weights, 0..1.
        proj_drop: dropout of the output, 0..1.
    """

    relative_position_index: Tensor
    slot_offsets: Tensor | None
    slot_index: Tensor | None
    shift_masks: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        slots: int,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(window))
        merged = slots < window
        self.register_buffer(
            "slot_offsets", offset_interpolation(window, slots) if merged else None, False
        )
        self.register_buffer(
            "slot_index", relative_position_index(slots) if merged else None, False
        )
        self.register_buffer("shift_masks", shift_masks(slots, shift) if shift else None, False)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(self) -> None:
        """Draw the bias table as Swin does."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """Relative position bias ``(h, N, N)`` of the windows that come in."""
        table: Tensor = self.relative_position_bias_table
        index = self.relative_position_index
        if self.slot_offsets is not None and self.slot_index is not None:
            table, index = self.slot_offsets.to(table.dtype) @ table, self.slot_index
        count = index.shape[0]
        return table[index.flatten()].view(count, count, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, rows: int, cols: int) -> Tensor:
        """Attend within every window.

        Args:
            x: windows ``(B, n, N, C)``, ``n = rows * cols``.
            rows, cols: windows per column and row of the grid they were cut from.

        Returns:
            ``(B, n, N, C)``.
        """
        b = x.shape[0]
        windows = x.flatten(0, 1)  # (B * n, N, C)
        bias = self.position_bias().unsqueeze(0)  # (1, h, N, N)
        kinds = None
        if self.shift_masks is not None:
            kinds = window_kinds(rows, cols, x.device).repeat(b)
        if torch.is_grad_enabled() or not served(windows, bias):
            return self._attend(windows, bias, kinds).view_as(x)
        step = max(CHUNK // self.qkv.out_features // x.shape[2], 1)
        outs = [
            self._attend(chunk, bias, None if kinds is None else kinds[k * step :][:step])
            for k, chunk in enumerate(windows.split(step))
        ]
        return torch.cat(outs).view_as(x) if len(outs) > 1 else outs[0].view_as(x)

    def _attend(self, x: Tensor, bias: Tensor, kinds: Tensor | None) -> Tensor:
        """Attention of windows ``(n, N, C)`` of these kinds (None: not shifted)."""
        n, count, c = x.shape
        if kinds is not None and self.shift_masks is not None:
            masks = self.shift_masks[kinds].unsqueeze(1)  # (n, 1, N, N)
            bias = bias + masks.to(bias.dtype)  # (n, h, N, N)
        qkv = run_linear(self.qkv, x).view(n, count, 3, self.num_heads, c // self.num_heads)
        x = window_attention(qkv, bias, self.scale, self.attn_drop if self.training else 0.0)
        return self.proj_drop(run_linear(self.proj, x))


class ShiftedWindowAttention(nn.Module):
    """Cuts a grid into (shifted) windows, attends within them, and puts it together.

    Args:
        dim, num_heads, window, slots: as :class:`WindowAttention`.
        shifted: whether the grid is rolled by half a window first.
        **kwargs: passed on to :class:`WindowAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, slots: int, shifted: bool, **kwargs: float
    ) -> None:
        super().__init__()
        self.window = slots
        self.shift = slots // 2 if shifted else 0
        self.w_msa = WindowAttention(dim, num_heads, window, slots, self.shift, **kwargs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Attend on a grid ``(B, H, W, C)`` of any size; same shape out."""
        _, height, width, _ = x.shape
        x = pad_to_windows(x, self.window)  # (B, H', W', C)
        _, full_height, full_width, _ = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = to_windows(x, self.window)
        rows, cols = full_height // self.window, full_width // self.window
        windows = self.w_msa(windows, rows, cols)
        x = from_windows(windows, self.window, full_height, full_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

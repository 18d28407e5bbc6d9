"""Window attention of Swin, on windows of tokens or of slots.

Source: Swin (Liu et al., ICCV 2021); parameter names as in mmdet's Swin (Apache-2.0),
so that its checkpoints load. Slots, the four shift masks and the fused attention
are ours.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops import (
    BAND,
    crop,
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

    def forward(self, x: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Attend within every window.

        Args:
            x: windows ``(B, n, N, C)``.
            kinds: which shift mask each window takes ``(n,)``, see
                :func:`ltm_mm.ops.window_kinds`; None: not shifted.

        Returns:
            ``(B, n, N, C)``.
        """
        b, n, count, c = x.shape
        bias = self.position_bias().unsqueeze(0)  # (1, h, N, N)
        if kinds is not None and self.shift_masks is not None:
            masks = self.shift_masks[kinds.repeat(b)].unsqueeze(1)  # (B * n, 1, N, N)
            bias = bias + masks.to(bias.dtype)  # (B * n, h, N, N)
        qkv = run_linear(self.qkv, x).view(b * n, count, 3, self.num_heads, c // self.num_heads)
        out = window_attention(qkv, bias, self.scale, self.attn_drop if self.training else 0.0)
        return self.proj_drop(run_linear(self.proj, out.view(b, n, count, c)))


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

    def forward(self, x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Attend within the windows of ``norm(x)``.

        Args:
            x: grid ``(B, H, W, C)`` of any size.
            norm: works on every token by itself; padding stays zero after it.

        Returns:
            ``(B, H, W, C)``.
        """
        if torch.is_grad_enabled() or not served(x, self.w_msa.relative_position_bias_table):
            return self._at_once(norm(x))
        return self._in_bands(x, norm)

    def _at_once(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = pad_to_windows(x, self.window)  # (B, H', W', C)
        _, full_height, full_width, _ = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        kinds = self._kinds(full_height // self.window, full_width // self.window, x.device)
        windows = self.w_msa(to_windows(x, self.window), kinds)
        x = from_windows(windows, self.window, full_height, full_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return crop(x, height, width)

    def _in_bands(self, x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """The same some rows of windows at a time, so that what is between stays in the cache."""
        b, height, width, c = x.shape
        w, out = self.window, x.new_empty(x.shape)
        rows, cols = -(-height // w), -(-width // w)
        kinds = self._kinds(rows, cols, x.device)
        lefts = _spans(0, cols, w, self.shift, width)
        step = max(BAND // (b * cols * w * w * c), 1)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            tops = _spans(first, last, w, self.shift, height)
            grid = x.new_zeros(b, (last - first) * w, cols * w, c)
            for here, there in tops:
                band = norm(x[:, there])
                for left_here, left_there in lefts:
                    grid[:, here, left_here] = band[:, :, left_there]
            own = kinds if kinds is None else kinds[first * cols : last * cols]
            windows = self.w_msa(to_windows(grid, w), own)
            grid = from_windows(windows, w, grid.shape[1], grid.shape[2])
            for here, there in tops:
                for left_here, left_there in lefts:
                    out[:, there, left_there] = grid[:, here, left_here]
        return out

    def _kinds(self, rows: int, cols: int, device: torch.device) -> Tensor | None:
        return window_kinds(rows, cols, device) if self.shift else None


def _spans(first: int, last: int, window: int, shift: int, size: int) -> list[tuple[slice, slice]]:
    """Where the rows (or columns) of shifted windows lie in their grid.

    Args:
        first, last: the windows ``first .. last - 1``.
        window: rows per window.
        shift: rows that the windows are shifted by; the padded grid goes round.
        size: rows of the grid without padding.

    Returns:
        Slices among the windows' rows, each with its slice of the grid; rows that are in
        none are padding.
    """
    full = -(-size // window) * window
    start, stop = first * window + shift, last * window + shift
    pieces = [(start, min(stop, size), 0), (0, min(stop - full, size), full - start)]
    return [
        (slice(at, at + end - begin), slice(begin, end)) for begin, end, at in pieces if begin < end
    ]

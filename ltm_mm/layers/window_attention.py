"""Window attention of Swin, on windows of tokens or of merged tokens.

Source: Swin (Liu et al., ICCV 2021); parameter names as in mmdet's Swin (Apache-2.0), so that
its checkpoints load. Weighting keys by group size is ToMe's proportional attention (Bolya et
al., ICLR 2023). Reading the position bias at one token of each group, the four shift masks and
the fused attention are ours.
"""

import torch
from torch import Tensor, nn

from ..kernels import run_linear, window_attention
from ..merging import Mask
from ..ops import (
    BLOCKED,
    ShiftedWindows,
    pair_places,
    relative_position_index,
    shift_masks,
    window_regions,
)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias.

    Args:
        dim: channels (C), a multiple of ``num_heads``.
        num_heads: attention heads (h).
        window: tokens per window side (w).
        shift: cyclic shift that the windows were cut after, in tokens.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: logit scale; None: ``head_dim ** -0.5``.
        attn_drop: dropout of attention weights, 0..1.
        proj_drop: dropout of the output, 0..1.
    """

    relative_position_index: Tensor
    shift_masks: Tensor | None
    places: Tensor
    region_places: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
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
        self.register_buffer("shift_masks", shift_masks(window, shift) if shift else None, False)
        places = pair_places(window)
        self.register_buffer("places", places, False)
        # Regions lie so far apart that no difference across them is in the table.
        far = (2 * window) ** 2 * window_regions(window, shift).int() if shift else None
        self.register_buffer("region_places", None if far is None else places + far, False)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(self) -> None:
        """Draw the bias table as Swin does."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self, shift_index: Tensor | None = None) -> Tensor:
        """Relative position bias of all tokens and the shift masks ``(n or 1, h, N, N)``."""
        index = self.relative_position_index
        count = index.shape[0]
        bias = self.relative_position_bias_table[index.flatten()].view(count, count, -1)
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if shift_index is None or self.shift_masks is None:
            return bias
        return bias + self.shift_masks[shift_index].unsqueeze(1).to(bias.dtype)

    def group_bias(self, mask: Mask, shift_index: Tensor | None = None) -> Tensor:
        """The same of merged tokens, and the log of how many tokens each key counts for.

        A merged token lies where its root lies.

        Args:
            mask: of windows ``(B, n, ...)``.
            shift_index: as :meth:`forward`.

        Returns:
            ``(B * n, h, P, P)``.
        """
        table: Tensor = self.relative_position_bias_table
        count = mask.count
        roots = mask.roots.flatten(0, 1)  # (B * n, P)
        if shift_index is not None and self.region_places is not None:
            # One more row before and after the table: for pairs that the shift keeps apart.
            own = shift_index.repeat(mask.roots.shape[0]).unsqueeze(-1) * self.places.numel()
            places = self.region_places.flatten()[own + roots]
            blocked = table.new_full((1, table.shape[1]), BLOCKED)
            table = torch.cat((blocked, table, blocked))
        else:
            places = self.places[roots]
        # A pair's row is the difference of its places, see `pair_places`.
        index = (places + len(table) // 2).unsqueeze(-1) - places.unsqueeze(-2)  # (B * n, P, P)
        if shift_index is not None:
            index = index.clamp(0, len(table) - 1)
        bias = table.index_select(0, index.flatten()).view(-1, count * count, table.shape[1])
        bias = bias.transpose(1, 2).reshape(-1, table.shape[1], count, count)
        weight = mask.sizes.flatten(0, 1).clamp(min=1e-6).log()  # (B * n, P)
        return bias + weight[:, None, None, :].to(bias.dtype)

    def forward(
        self, x: Tensor, shift_index: Tensor | None = None, mask: Mask | None = None
    ) -> Tensor:
        """Attend within every window.

        Args:
            x: windows ``(B, n, N, C)``, or their merged tokens ``(B, n, P, C)``.
            shift_index: which shift mask each window takes ``(n,)``, see
                :func:`ltm_mm.ops.shift_indices`; None: not shifted.
            mask: the mask that merged them; None: not merged.

        Returns:
            As ``x``.
        """
        b, n, count, _ = x.shape
        if mask is not None:
            bias = self.group_bias(mask, shift_index)
        else:
            bias = self.position_bias(shift_index)
            if shift_index is not None:
                bias = bias.repeat(b, 1, 1, 1)
        qkv = run_linear(self.qkv, x).view(b * n, count, 3, self.num_heads, -1)
        out = window_attention(qkv, bias, self.scale, self.attn_drop if self.training else 0.0)
        return self.proj_drop(run_linear(self.proj, out.view(b, n, count, -1)))


class ShiftedWindowAttention(nn.Module):
    """How a Swin block cuts its grid into (shifted) windows, and the attention within them.

    It has no ``forward``: :class:`.swin_block.SwinView` runs the block.

    Args:
        dim, num_heads, window: as :class:`WindowAttention`.
        shifted: whether the grid is rolled by half a window first.
        **kwargs: passed on to :class:`WindowAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, shifted: bool, **kwargs: float
    ) -> None:
        super().__init__()
        self.windows = ShiftedWindows(window, window // 2 if shifted else 0)
        self.w_msa = WindowAttention(dim, num_heads, window, self.windows.shift, **kwargs)  # type: ignore[arg-type]

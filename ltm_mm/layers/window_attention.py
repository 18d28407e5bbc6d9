"""Window attention of Swin, on windows of tokens or of merged tokens, whoever holds its parameters.

Source: Swin (Liu et al., ICCV 2021), Swin V2 (Liu et al., CVPR 2022); parameter names as in mmdet's
Swin (Apache-2.0), so that its checkpoints load. Weighting keys by group size is ToMe's
proportional attention (Bolya et al., ICLR 2023). Reading the position bias at one token of each
group is ours.

Letters: B images, n windows per image, N tokens or P merged tokens per window, C channels, h heads
of d channels, w tokens per window side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import run_linear, window_attention
from ..merging import Groups
from ..ops import (
    BLOCKED,
    ShiftedWindows,
    cached_by_size,
    pair_offsets,
    relative_position_index,
    shift_masks,
    window_regions,
)

MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True)
class WindowContext:
    """Where windows of tokens come from.

    Attributes:
        windows: how the grid was cut.
        shape: images and windows per image ``(B, n)``.
        shift_index: which shift mask each window takes ``(n,)``, see
            :func:`ltm_mm.ops.shift_indices`; None: not shifted.
        mask: what merged the tokens; None: not merged.
    """

    windows: ShiftedWindows
    shape: tuple[int, int]
    shift_index: Tensor | None = None
    mask: Groups | None = None


@dataclass(frozen=True)
class WindowTables:
    """What window attention looks up; follows from the window's size and shift alone.

    Attributes:
        pair_index: row of the bias table for query and key ``(N, N)``.
        shift_masks: ``(4, N, N)``; None without a shift.
        token_offsets: one number per token, whose differences give a pair's row ``(N,)``.
        region_offsets: the same by shift mask ``(4, N)``; tokens that the shift separates differ by
            more than the table has rows. None without a shift.
    """

    pair_index: Tensor
    shift_masks: Tensor | None
    token_offsets: Tensor
    region_offsets: Tensor | None


@cached_by_size
def window_tables(window: int, shift: int, device: torch.device) -> WindowTables:
    """The tables of a window's size and shift, made once for each device.

    Args:
        window: tokens per window side.
        shift: tokens that windows are shifted by.
        device: where the tables live.
    """
    offsets = pair_offsets(window)
    masks = regions = None
    if shift:
        masks = shift_masks(window, shift).to(device)
        region_gap = (2 * window) ** 2 * window_regions(window, shift).int()
        regions = (offsets + region_gap).to(device)
    index = relative_position_index(window)
    return WindowTables(index.to(device), masks, offsets.to(device), regions)


def position_bias(table: Tensor, tables: WindowTables, shift_index: Tensor | None) -> Tensor:
    """Relative position bias of all tokens of a window, and the shift masks.

    Args:
        table: bias of every relative position ``((2w - 1)**2, h)``.
        tables: of the windows.
        shift_index: which shift mask each window takes ``(n,)``; None: not shifted.

    Returns:
        ``(n or 1, h, N, N)``.
    """
    index = tables.pair_index
    bias = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)
    if shift_index is None or tables.shift_masks is None:
        return bias
    return bias + tables.shift_masks[shift_index].unsqueeze(1).to(bias.dtype)


def group_bias(
    table: Tensor, tables: WindowTables, mask: Groups, shift_index: Tensor | None
) -> Tensor:
    """The same for merged tokens, plus the log of how many tokens each key counts for.

    A merged token's position is that of its group's root.

    Args:
        table, tables, shift_index: as :func:`position_bias`.
        mask: of windows ``(B, n, ...)``.

    Returns:
        ``(B * n, h, P, P)``.
    """
    count, heads = mask.count, table.shape[1]
    roots = mask.roots.flatten(0, 1)  # (B * n, P)
    if shift_index is not None and tables.region_offsets is not None:
        # One more row before and after the table: for pairs that the shift separates.
        first = shift_index.repeat(mask.roots.shape[0]).unsqueeze(-1) * tables.token_offsets.numel()
        offsets = tables.region_offsets.flatten()[first + roots]
        blocked = table.new_full((1, heads), BLOCKED)
        table = torch.cat((blocked, table, blocked))
    else:
        offsets = tables.token_offsets[roots]
    # A pair's row is the difference of its offsets, see `pair_offsets`.
    index = (offsets + len(table) // 2).unsqueeze(-1) - offsets.unsqueeze(-2)  # (B * n, P, P)
    if shift_index is not None:
        index = index.clamp(0, len(table) - 1)
    bias = table.index_select(0, index.flatten()).view(-1, count * count, heads)
    bias = bias.transpose(1, 2).reshape(-1, heads, count, count)
    log_sizes = mask.sizes.flatten(0, 1).clamp(min=1e-6).log()  # (B * n, P)
    return bias + log_sizes[:, None, None, :].to(bias.dtype)


def attend(
    x: Tensor,
    context: WindowContext,
    *,
    qkv: Callable[[Tensor], Tensor],
    proj: Callable[[Tensor], Tensor],
    bias_table: Tensor,
    num_heads: int,
    scale: float,
    dropout: float = 0.0,
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Multi-head self-attention within windows, or among their merged tokens.

    Args:
        x: ``(B * n, N or P, C)``.
        context: where the windows come from.
        qkv: ``(..., C)`` to queries, keys and values side by side ``(..., 3C)``.
        proj: ``(..., C)`` to the output ``(..., C)``.
        bias_table: ``((2w - 1)**2, h)``.
        num_heads: attention heads (h).
        scale: of the logits.
        dropout: of the attention weights, 0..1.
        weigh: from logits to attention weights, where hooks observe the modules that do it.

    Returns:
        ``(B * n, N or P, C)``.

    Raises:
        ValueError: if the table belongs to windows of another size.
    """
    windows, shift_index, mask = context.windows, context.shift_index, context.mask
    if len(bias_table) != (2 * windows.size - 1) ** 2:
        raise ValueError(
            f"{len(bias_table)} position biases do not fit windows of {windows.size} x "
            f"{windows.size} tokens"
        )
    tables = window_tables(windows.size, windows.shift, x.device)
    if mask is not None:
        bias = group_bias(bias_table, tables, mask, shift_index)
    else:
        bias = position_bias(bias_table, tables, shift_index)
        if shift_index is not None:
            bias = bias.repeat(context.shape[0], 1, 1, 1)
    split = qkv(x).view(*x.shape[:2], 3, num_heads, -1)  # (B * n, N, 3, h, d)
    if weigh is None:
        return proj(window_attention(split, bias, scale, dropout))
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B * n, h, N, d)
    out = weigh(q @ k.transpose(-2, -1) * scale + bias.to(q.dtype)) @ v
    return proj(out.transpose(1, 2).flatten(2))


def scaled_cosine(qkv: Tensor, num_heads: int, log_scale: Tensor) -> Tensor:
    """Queries, keys and values ``(..., 3C)`` whose products are Swin V2's scaled cosines.

    Args:
        qkv: as projected.
        num_heads: attention heads (h).
        log_scale: log of each head's scale ``(h, 1, 1)``.
    """
    q, k, v = qkv.view(*qkv.shape[:-1], 3, num_heads, -1).unbind(-3)  # (..., h, d)
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp().view(-1, 1)
    q = F.normalize(q, dim=-1) * scale.to(q.dtype)
    return torch.stack((q, F.normalize(k, dim=-1), v), -3).flatten(-3)


def concat_linears(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """Layers whose outputs for one input stand side by side."""
    return lambda x: torch.cat([run_linear(layer, x) for layer in layers], -1)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias.

    Args:
        dim: channels (C), a multiple of ``num_heads``.
        num_heads: attention heads (h).
        window: tokens per window side (w).
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: logit scale; None: ``head_dim ** -0.5``.
        attn_drop: dropout of attention weights, 0..1.
        proj_drop: dropout of the output, 0..1.

    Raises:
        ValueError: if ``dim`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
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
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(self) -> None:
        """Draw the bias table as Swin does."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, context: WindowContext) -> Tensor:
        """Attend within every window: ``(B * n, N or P, C)`` -> the same, see :func:`attend`."""
        return attend(
            x,
            context,
            qkv=lambda x: run_linear(self.qkv, x),
            proj=lambda x: self.proj_drop(run_linear(self.proj, x)),
            bias_table=self.relative_position_bias_table,
            num_heads=self.num_heads,
            scale=self.scale,
            dropout=self.attn_drop if self.training else 0.0,
        )


class ShiftedWindowAttention(nn.Module):
    """How a Swin block cuts its grid into (shifted) windows, and the attention within them.

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
        self.w_msa = WindowAttention(dim, num_heads, window, **kwargs)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: WindowContext) -> Tensor:
        """Attend within windows that are cut already, as :class:`WindowAttention`."""
        return self.w_msa(x, context)

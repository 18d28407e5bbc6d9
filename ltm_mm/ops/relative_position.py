"""Relative position bias of window attention (Swin, Liu et al., ICCV 2021, section 3.2)."""

import torch
from torch import Tensor


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of a window's tokens.

    Args:
        window: tokens per window side (w).

    Returns:
        ``(w * w, w * w)`` int64: query, key -> row of the ``(2w - 1)**2`` table.
    """
    offsets = pair_offsets(window)
    return offsets[:, None] - offsets[None, :] + (2 * window - 1) ** 2 // 2


def pair_offsets(window: int) -> Tensor:
    """One number per token ``(N,)`` int64, whose differences tell a pair's row of the table.

    The row of query i and key j is ``offsets[i] - offsets[j]`` plus half the table's length.

    Args:
        window: tokens per window side (w).
    """
    axis = torch.arange(window)
    return (axis[:, None] * (2 * window - 1) + axis[None, :]).flatten()

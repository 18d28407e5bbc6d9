"""Relative position bias of window attention, on tokens and on slots.

Source: the bias table is Swin's (Liu et al., ICCV 2021, section 3.2); reading it
at slot offsets is ours.
"""

import torch
from torch import Tensor


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of a window's tokens.

    Args:
        window: tokens per window side (w).

    Returns:
        ``(w * w, w * w)`` int64: query, key -> row of the ``(2w - 1)**2`` table.
    """
    axis = torch.arange(window)
    rows, cols = (a.flatten() for a in torch.meshgrid(axis, axis, indexing="ij"))
    d_row = rows[:, None] - rows[None, :] + window - 1
    d_col = cols[:, None] - cols[None, :] + window - 1
    return d_row * (2 * window - 1) + d_col


def offset_interpolation(window: int, slots: int) -> Tensor:
    """Matrix that reads a window's bias table at the offsets between slots (ours).

    Slots lie ``window / slots`` tokens apart, so their offsets fall between the
    table's entries; they are read by bilinear interpolation. The matrix is fixed:
    the table stays the parameter, and its gradient flows through.

    Args:
        window: tokens per window side (w) that the table was made for.
        slots: slots per window side (s), ``1 <= slots <= window``.

    Returns:
        ``((2s - 1)**2, (2w - 1)**2)``; the identity for ``slots == window``.
    """
    offsets = torch.arange(1 - slots, slots, dtype=torch.float64) * window / slots
    entries = torch.arange(1 - window, window, dtype=torch.float64)
    line = (1 - (offsets[:, None] - entries[None, :]).abs()).clamp(min=0)
    return torch.kron(line, line).float()

"""Which tokens may see each other in a shifted window.

Source: Swin's cyclic shift (Liu et al., ICCV 2021, section 3.2). A window's mask
depends only on whether it lies in the last row and in the last column, so there
are four masks for every grid, whatever its size.
"""

import torch
from torch import Tensor

BLOCKED = -100.0  # as the reference; small enough to vanish, finite in fp16


def shift_masks(window: int, shift: int) -> Tensor:
    """The four masks of shifted windows.

    Args:
        window: tokens per window side.
        shift: how far the grid was rolled up and left, ``0 <= shift < window``.

    Returns:
        ``(4, N, N)``: added to the attention logits of a window of kind 0 (inner),
        1 (last column), 2 (last row), 3 (both); 0 or -100.
    """
    regions = window_regions(window, shift)  # (4, N)
    return (regions.unsqueeze(-1) != regions.unsqueeze(-2)).float() * BLOCKED


def shift_indices(
    rows: int, cols: int, device: torch.device, axes: tuple[bool, bool] = (True, True)
) -> Tensor:
    """Kind of every window of a grid of windows, as :func:`shift_masks` counts them.

    Args:
        rows, cols: windows per column and per row of the grid.
        device: where the result lives.
        axes: whether rows, and whether columns are shifted; one that is not has no last window.

    Returns:
        ``(rows * cols,)`` int64 in 0..3.
    """
    last_row = torch.arange(rows, device=device) == rows - 1
    last_col = torch.arange(cols, device=device) == cols - 1
    by_rows, by_cols = axes
    return (last_row[:, None] * (2 * by_rows) + last_col[None, :] * int(by_cols)).flatten()


def window_regions(window: int, shift: int) -> Tensor:
    """The region of each token by kind of window ``(4, N)``, 0..3.

    Kinds are those of :func:`shift_indices`: inner, last column, last row, both. The
    tokens that the shift brought from the other side are another region.
    """
    wrapped = (torch.arange(window) >= window - shift).float()
    row = wrapped[:, None].expand(window, window).flatten()
    col = wrapped[None, :].expand(window, window).flatten()
    return torch.stack([0 * row, col, 2 * row, 2 * row + col])

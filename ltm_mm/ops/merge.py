"""Merging tokens into slots and leading an update of the slots back.

Source: ``X~ = G^T Z`` is the paper's (arXiv 2407.15219, section 3); merging within
windows and residual unmerging are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .windows import from_windows, pad_to_windows, real_tokens, to_windows


@dataclass
class Merge:
    """What one merge leaves behind for its way back.

    Attributes:
        tokens: Z, the tokens at the merge ``(B, H, W, C)``.
        slots: X~, what they were merged into ``(B, h, w, C)``.
        back: U, the mask of the way back ``(B, n, N, P)``.
        mass: mass of the tokens in their windows ``(1 or B, n, N)``; None: 1 each.
        window: tokens per window side.
    """

    tokens: Tensor
    slots: Tensor
    back: Tensor
    mass: Tensor | None
    window: int

    def slot_mass(self) -> Tensor:
        """How many real tokens each slot stands for, as a grid ``(B, h, w, 1)``."""
        mass = self.back if self.mass is None else self.back * self.mass.unsqueeze(-1)
        mass = mass.sum(-2).unsqueeze(-1)  # (B, n, P, 1)
        _, height, width, _ = self.slots.shape
        return from_windows(mass, _side(self.back.shape[-1]), height, width)


def merge(tokens: Tensor, mask: Tensor) -> Tensor:
    """Merge the tokens of every window.

    Args:
        tokens: Z ``(B, n, N, C)``.
        mask: G ``(B, n, N, P)``, columns sum to 1.

    Returns:
        X~ ``(B, n, P, C)``.
    """
    return _product(mask.transpose(-1, -2), tokens)


def unmerge(update: Tensor, back: Tensor) -> Tensor:
    """Share the update of the slots among the tokens of every window.

    Args:
        update: Y~ - X~ ``(B, n, P, C)``.
        back: U ``(B, n, N, P)``, rows sum to 1.

    Returns:
        What each token changes by ``(B, n, N, C)``.
    """
    return _product(back, update)


def padded_windows(
    grid: Tensor, window: int, mass: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Windows of a grid of any size, with the mass that keeps padding out.

    Args:
        grid: ``(B, H, W, C)``.
        window: tokens per window side.
        mass: ``(1 or B, H, W, 1)`` or None (1 each).

    Returns:
        Windows ``(B, n, N, C)`` and their mass ``(1 or B, n, N)``, None if 1 each.
    """
    _, height, width, _ = grid.shape
    windows = to_windows(pad_to_windows(grid, window), window)
    if mass is not None:
        return windows, to_windows(pad_to_windows(mass, window), window).squeeze(-1)
    if not torch.compiler.is_exporting() and height % window == 0 and width % window == 0:
        return windows, None
    return windows, real_tokens(height, width, window, like=grid)


def merge_grid(grid: Tensor, windows: Tensor, mask: Tensor, window: int) -> Tensor:
    """Merge the windows of a grid; the slots form a grid again.

    Args:
        grid: the tokens ``(B, H, W, C)`` (read for its size).
        windows: the same tokens in padded windows ``(B, n, N, C)``.
        mask: G ``(B, n, N, P)``, columns sum to 1.
        window: tokens per window side (w).

    Returns:
        Slots ``(B, ceil(H/w) * s, ceil(W/w) * s, C)``.
    """
    side = _side(mask.shape[-1])
    rows = (grid.shape[1] + window - 1) // window
    cols = (grid.shape[2] + window - 1) // window
    return from_windows(merge(windows, mask), side, rows * side, cols * side)


def unmerge_grid(slots: Tensor, merged: Merge) -> Tensor:
    """Residual unmerging (ours): ``Y = Z + U (Y~ - X~)``.

    Detail that merging would lose never leaves Z; only the update is shared. Where
    nothing changed the slots, Z comes back to the bit.

    Args:
        slots: Y~, the slots after the blocks that ran on them ``(B, h, w, C)``.
        merged: what the merge left behind.

    Returns:
        Y ``(B, H, W, C)``.
    """
    _, height, width, _ = merged.tokens.shape
    w = merged.window
    update = to_windows(slots - merged.slots, _side(merged.back.shape[-1]))
    update = unmerge(update, merged.back.to(update.dtype))  # (B, n, N, C)
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    grid = from_windows(update, w, rows * w, cols * w)
    return merged.tokens + grid.narrow(1, 0, height).narrow(2, 0, width)


def _side(count: int) -> int:
    """Slots per window side from slots per window."""
    return round(count**0.5)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in every window, one of them perhaps the same for all images.

    Under export written out: ``@`` asks which sizes are 1, which would fix them.
    """
    if not torch.compiler.is_exporting():
        return a @ b
    if isinstance(a.shape[0], int):  # 1, and not a symbol
        a = a.repeat(b.shape[0], 1, 1, 1)
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, b.shape[:2])

"""Merging tokens into slots and leading an update of the slots back.

Source: ``X~ = G^T Z`` is the paper's (arXiv 2407.15219, section 3); merging within
windows and residual unmerging are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .windows import bands, crop, from_windows, joined, pad_to_windows, real_tokens, to_windows

_TINY = 1e-12  # squared length of a token or slot that counts as zero


@dataclass
class Merge:
    """What one merge leaves behind for its way back.

    Attributes:
        tokens: Z, the tokens at the merge ``(B, H, W, C)``.
        slots: X~, what they were merged into ``(B, h, w, C)``, ``h = ceil(H * s / w)``: the
            slots that reach into the grid, without those that lie beyond its edge.
        back: U, the mask of the way back ``(B, n, N, P)``.
        mass: mass of the tokens in their windows ``(1 or B, n, N)``; None: 1 each.
        window: tokens per window side.
        residual: ``Y = Z + U (Y~ - X~)`` on the way back; otherwise ``Y = U Y~``.
    """

    tokens: Tensor
    slots: Tensor
    back: Tensor
    mass: Tensor | None
    window: int
    residual: bool = True

    def slot_mass(self) -> Tensor:
        """How many real tokens each slot stands for, as a grid ``(B, h, w, 1)``."""
        mass = self.back if self.mass is None else self.back * self.mass.unsqueeze(-1)
        return self._edge_takes_all(mass.sum(-2).unsqueeze(-1))  # (B, n, P, 1)

    def slot_amounts(self, amounts: Tensor) -> Tensor:
        """Share out what the tokens have, e.g. pixels of a class, among their slots.

        Args:
            amounts: ``(B, H, W, K)``; each token's go to its slots as its row of U says.

        Returns:
            ``(B, h, w, K)``, as much in all.
        """
        windows = to_windows(pad_to_windows(amounts, self.window), self.window)
        return self._edge_takes_all(_product(self.back.mT.to(windows), windows))

    def _edge_takes_all(self, amounts: Tensor) -> Tensor:
        """``(B, n, P, K)`` as a grid ``(B, h, w, K)``; its edge stands for what lies beyond."""
        grid = _all_slots(amounts, self.tokens, self.window)
        for dim in (1, 2):
            last = self.slots.shape[dim] - 1
            beyond = grid.narrow(dim, last, grid.shape[dim] - last).sum(dim, keepdim=True)
            grid = torch.cat((grid.narrow(dim, 0, last), beyond), dim)
        return grid


def merge(tokens: Tensor, mask: Tensor) -> Tensor:
    """Merge the tokens of every window.

    Args:
        tokens: Z ``(B, n, N, C)``.
        mask: G ``(B, n, N, P)``, columns sum to 1.

    Returns:
        X~ ``(B, n, P, C)``.
    """
    return _product(mask.mT, tokens)


def keep_norm(slots: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Stretch slots to the length of their tokens (ours).

    The mean of tokens that differ is shorter than they are. Layers without a layer norm
    before them see that, so each slot is stretched to the root mean square of its tokens'
    lengths; by 2 at most, what the mean of four unrelated tokens has lost.

    Args:
        slots: X~ ``(B, n, P, C)``.
        tokens: Z ``(B, n, N, C)``.
        mask: G ``(B, n, N, P)``, columns sum to 1.

    Returns:
        The longer X~ ``(B, n, P, C)``.
    """
    # Not by a product of matrices: autocast would make it one in half precision.
    wanted = (mask * _squared_length(tokens)).sum(-2).unsqueeze(-1).clamp(min=_TINY)
    found = _squared_length(slots).clamp(min=_TINY)
    return slots * (wanted / found).clamp(max=4.0).sqrt().to(slots.dtype)


def unmerge(update: Tensor, back: Tensor) -> Tensor:
    """Share the update of the slots among the tokens of every window.

    Args:
        update: Y~ - X~ ``(B, n, P, C)``.
        back: U ``(B, n, N, P)``, rows sum to 1.

    Returns:
        What each token changes by ``(B, n, N, C)``.
    """
    return _product(back, update)


def window_mass(grid: Tensor, window: int, mass: Tensor | None = None) -> Tensor | None:
    """Mass of the tokens in the padded windows of a grid of any size.

    Args:
        grid: ``(B, H, W, C)``.
        window: tokens per window side.
        mass: ``(1 or B, H, W, 1)`` or None (1 each).

    Returns:
        ``(1 or B, n, N)``, 0 for padding; None if 1 each.
    """
    _, height, width, _ = grid.shape
    if mass is not None:
        return to_windows(pad_to_windows(mass, window), window).squeeze(-1)
    if torch.compiler.is_compiling():  # all masks are of one batch size there
        return real_tokens(height, width, window, like=grid).repeat(grid.shape[0], 1, 1)
    if height % window == 0 and width % window == 0:
        return None
    return real_tokens(height, width, window, like=grid)


def slot_grid(slots: Tensor, grid: Tensor, window: int) -> Tensor:
    """The slots of a grid's windows as a grid.

    Args:
        slots: of the padded windows ``(B, n, P, C)``.
        grid: the tokens ``(B, H, W, C)`` (read for its size).
        window: tokens per window side (w).

    Returns:
        ``(B, ceil(H * s / w), ceil(W * s / w), C)``.
    """
    side = _side(slots.shape[-2])
    height, width = ((size * side + window - 1) // window for size in grid.shape[1:3])
    return crop(_all_slots(slots, grid, window), height, width)


def unmerge_grid(slots: Tensor, merged: Merge) -> Tensor:
    """Residual unmerging (ours): ``Y = Z + U (Y~ - X~)``.

    Detail that merging would lose never leaves Z; only the update is shared. Where
    nothing changed the slots, Z comes back to the bit. The update of the grid's last
    slots stands for that of the slots beyond its edge. A merge that is not ``residual``
    gives ``Y = U Y~``.

    Args:
        slots: Y~, the slots after the blocks that ran on them ``(B, h, w, C)``.
        merged: what the merge left behind.

    Returns:
        Y ``(B, H, W, C)``.
    """
    w, s = merged.window, _side(merged.back.shape[-1])
    update = slots - merged.slots if merged.residual else slots
    outs, first = [], 0
    for k, tokens in enumerate(parts := bands(merged.tokens, w)):
        _, height, width, _ = tokens.shape
        rows, cols = (height + w - 1) // w, (width + w - 1) // w
        top = k * parts[0].shape[1] // w * s
        band, back = update, merged.back
        if len(parts) > 1:  # not compiled or exported: a slice would fix sizes there
            band = band[:, top : top + rows * s]
            back = back[:, first : first + rows * cols]
        band = _repeat_edge(band, rows * s, cols * s)
        shared = unmerge(to_windows(band, s), back.to(update.dtype))  # (B, n, N, C)
        grid = from_windows(shared, w, rows * w, cols * w)
        grid = crop(grid, height, width)
        outs.append(tokens + grid if merged.residual else grid)
        first += rows * cols
    return joined(outs)


def _squared_length(x: Tensor) -> Tensor:
    """``(..., 1)``, in single precision at least: half precision would overflow."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def _all_slots(slots: Tensor, grid: Tensor, window: int) -> Tensor:
    """Slots of the padded windows ``(B, n, P, C)`` of a grid of tokens, as a grid."""
    side = _side(slots.shape[-2])
    rows, cols = ((size + window - 1) // window for size in grid.shape[1:3])
    return from_windows(slots, side, rows * side, cols * side)


def _repeat_edge(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat a grid's last row and column up to ``(B, height, width, C)``."""
    for dim, size in ((1, height), (2, width)):
        # Compiled and exported, both are symbolic numbers: no branch on them there.
        if torch.compiler.is_compiling() or x.shape[dim] < size:
            index = torch.arange(size, device=x.device).clamp(max=x.shape[dim] - 1)
            x = x.index_select(dim, index)
    return x


def _side(count: int) -> int:
    """Slots per window side from slots per window."""
    return round(count**0.5)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in every window.

    Compiled and exported it is written out: ``@`` asks which sizes are 1, and fixes them.
    """
    if not torch.compiler.is_compiling():
        return a @ b
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, b.shape[:2])

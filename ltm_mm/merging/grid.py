"""Merging windows of a grid into a smaller grid, for networks whose convolutions need one (ours).

Letters: w tokens and s merged tokens per window side, N = w * w, P = s * s, n windows per image.
Source: ``X~ = G^T Z`` is the paper's (arXiv 2407.15219, section 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..ops import crop, from_windows, pad_to_windows, real_tokens, to_windows
from .soft import Soft

_TINY = 1e-12  # smallest squared norm that is divided by
# Convolutions expect merged tokens in their places: similarity has less weight than elsewhere.
SCALE = 8.0


@dataclass
class GridMerge:
    """A merge into a smaller grid; see :class:`.record.Merge`.

    Attributes:
        tokens: Z ``(B, H, W, C)``.
        merged_grid: X~ as a grid ``(B, h, w, C)``, ``h = ceil(H * s / w)``; merged tokens beyond
            its edge are dropped.
        u: the unmerge mask ``(B, n, N, P)``.
        mass: how many tokens each token stands for ``(1 or B, n, N)``; None: 1 each.
        window: tokens per window side.
        earlier: the merge that produced the tokens; None: they are those of the map.
    """

    tokens: Tensor
    merged_grid: Tensor
    u: Tensor
    mass: Tensor | None
    window: int
    earlier: "GridMerge | None" = None

    @property
    def merged(self) -> Tensor:
        """X~ ``(B, h * w, C)``."""
        return self.merged_grid.flatten(1, 2)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the original grid."""
        first = self.tokens if self.earlier is None else self.earlier.tokens
        return (first.shape[1], first.shape[2])

    def merged_mass(self) -> Tensor:
        """How many real tokens each merged token stands for ``(B, h, w, 1)``."""
        mass = self.u if self.mass is None else self.u * self.mass.unsqueeze(-1)
        return self._edge_takes_all(mass.sum(-2).unsqueeze(-1))  # (B, n, P, 1)

    def share(self, amounts: Tensor) -> Tensor:
        """``(B, H, W, K)`` -> ``(B, h * w, K)``."""
        return self._share_on_grid(amounts).flatten(1, 2)

    def _share_on_grid(self, amounts: Tensor) -> Tensor:
        incoming = amounts if self.earlier is None else self.earlier._share_on_grid(amounts)
        windows = to_windows(pad_to_windows(incoming, self.window), self.window)
        return self._edge_takes_all(_product(self.u.transpose(-1, -2).to(windows), windows))

    def groups(self) -> Tensor:
        """The merged token with the largest weight in each token's row of U ``(B, H, W)``."""
        _, h, w, _ = self.merged_grid.shape
        merged_ids = torch.arange(h * w, device=self.u.device).view(1, h, w, 1).double()
        side, window = _side(self.u.shape[-1]), self.window
        height, width = self.tokens.shape[1:3]
        rows, cols = -(-height // window), -(-width // window)
        merged_ids = _repeat_edge(merged_ids, rows * side, cols * side)
        merged_ids = to_windows(merged_ids, side)  # (1, n, P, 1)
        best = self.u.argmax(-1, keepdim=True)  # (B, n, N, 1)
        groups = merged_ids.expand(len(best), -1, -1, -1).gather(2, best)
        groups = crop(from_windows(groups, window, rows * window, cols * window), height, width)
        groups = groups.squeeze(-1).long()
        if self.earlier is None:
            return groups
        before = self.earlier.groups()
        return groups.flatten(1).gather(1, before.flatten(1)).view(before.shape)

    def _edge_takes_all(self, amounts: Tensor) -> Tensor:
        """``(B, n, P, K)`` as a grid ``(B, h, w, K)``; what lies beyond the edge is added to it."""
        grid = _as_grid(amounts, self.tokens, self.window)
        for dim in (1, 2):
            last = self.merged_grid.shape[dim] - 1
            beyond = grid.narrow(dim, last, grid.shape[dim] - last).sum(dim, keepdim=True)
            grid = torch.cat((grid.narrow(dim, 0, last), beyond), dim)
        return grid


class GridMerger(nn.Module):
    """Merges every w x w window of a token grid into s x s tokens, which form a grid again.

    Undo it with :func:`unmerge_grid`. No layer norm precedes the convolutions that run on merged
    tokens, so they are rescaled to the norm of their tokens, see :func:`keep_norm`.

    Args:
        window: tokens per window side (w).
        side: merged tokens per window side (s), ``1 <= s < w``.
    """

    def __init__(self, window: int, side: int) -> None:
        super().__init__()
        self.window, self.side = window, side
        self.mask = Soft(window, side * side, SCALE)

    def forward(self, grid: Tensor, earlier: GridMerge | None = None) -> GridMerge:
        """Merge a grid.

        Args:
            grid: tokens ``(B, H, W, C)``, any H, W >= 1.
            earlier: the merge that produced them, whose masses are their weights.
        """
        w, s = self.window, self.side
        mass = _window_mass(grid, w, None if earlier is None else earlier.merged_mass())
        windows = to_windows(pad_to_windows(grid, w), w)
        mask = self.mask(windows, mass)
        merged = keep_norm(mask.merged, windows, mask.g)
        height, width = ((size * s + w - 1) // w for size in grid.shape[1:3])
        merged_grid = crop(_as_grid(merged, grid, w), height, width)
        return GridMerge(grid, merged_grid, mask.u, mass, w, earlier)


def keep_norm(merged: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Rescale merged tokens to the norm of their tokens (ours).

    The mean of different tokens has a smaller norm than they have, which matters to layers without
    a layer norm before them. Each mean is therefore rescaled to the root mean square of its tokens'
    norms, by a factor of at most 2 (what the mean of four unrelated tokens needs).

    Args:
        merged: X~ ``(B, n, P, C)``.
        tokens: Z ``(B, n, N, C)``.
        mask: G ``(B, n, N, P)``, columns sum to 1.

    Returns:
        The rescaled X~ ``(B, n, P, C)``.
    """
    # Not a matrix product: autocast would run it in half precision.
    wanted = (mask * _squared_length(tokens)).sum(-2).unsqueeze(-1).clamp(min=_TINY)
    length = _squared_length(merged).clamp(min=_TINY)
    return merged * (wanted / length).clamp(max=4.0).sqrt().to(merged.dtype)


def unmerge_grid(updated: Tensor, merge: GridMerge) -> Tensor:
    """Residual unmerging (ours): ``Y = Z + U (Y~ - X~)``.

    If the merged tokens did not change, the result equals Z bit for bit. Merged tokens beyond the
    grid's edge get the update of those at the edge.

    Args:
        updated: Y~, the merged tokens after the blocks that ran on them ``(B, h, w, C)``.
        merge: the merge to undo.

    Returns:
        Y ``(B, H, W, C)``.
    """
    w, s = merge.window, _side(merge.u.shape[-1])
    _, height, width, _ = merge.tokens.shape
    rows, cols = (height + w - 1) // w, (width + w - 1) // w
    update = _repeat_edge(updated - merge.merged_grid, rows * s, cols * s)
    shared = _product(merge.u.to(update.dtype), to_windows(update, s))  # (B, n, N, C)
    grid = from_windows(shared, w, rows * w, cols * w)
    return merge.tokens + crop(grid, height, width)


def unmerge_all(updated: Tensor, merge: GridMerge | None) -> Tensor:
    """Undo a merge and the earlier ones below it."""
    while merge is not None:
        updated, merge = unmerge_grid(updated, merge), merge.earlier
    return updated


def _window_mass(grid: Tensor, window: int, mass: Tensor | None) -> Tensor | None:
    """Mass of the tokens in the padded windows ``(1 or B, n, N)``, 0 for padding; None: 1 each."""
    _, height, width, _ = grid.shape
    if mass is not None:
        return to_windows(pad_to_windows(mass, window), window).squeeze(-1)
    if not torch.compiler.is_compiling() and height % window == 0 and width % window == 0:
        return None
    return real_tokens(height, width, window, like=grid)


def _squared_length(x: Tensor) -> Tensor:
    """``(..., 1)``, in single precision at least: half precision would overflow."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()


def _as_grid(merged: Tensor, grid: Tensor, window: int) -> Tensor:
    """Merged tokens of the padded windows ``(B, n, P, C)`` of a grid of tokens, as a grid."""
    side = _side(merged.shape[-2])
    rows, cols = ((size + window - 1) // window for size in grid.shape[1:3])
    return from_windows(merged, side, rows * side, cols * side)


def _repeat_edge(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat a grid's last row and column up to ``(B, height, width, C)``."""
    for dim, size in ((1, height), (2, width)):
        # Compiled and exported, both are symbolic numbers: no branch on them there.
        if torch.compiler.is_compiling() or x.shape[dim] < size:
            index = torch.arange(size, device=x.device).clamp(max=x.shape[dim] - 1)
            x = x.index_select(dim, index)
    return x


def _side(count: int) -> int:
    """Merged tokens per window side from those per window."""
    return math.isqrt(int(count))  # traced, a size is a tensor


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in every window.

    Compiled and exported it is written out: ``@`` asks which sizes are 1, and fixes them.
    """
    if not torch.compiler.is_compiling():
        return a @ b
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*b.shape[:2], a.shape[2], -1)

"""The soft mask of windows on a grid: every token belongs to several groups, with a share in each.

Source: a softmax mask from a learned module is the paper's (arXiv 2407.15219, section 3); its form
is ours. Merged tokens keep their places because convolutions run on them. In a Swin, whose blocks
need no grid, matching changes the maps less at equal time, see docs/fidelity.md.

Letters: N = w * w tokens per window, P merged tokens, n windows per image, B images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MaskModule


class SoftGroups(NamedTuple):
    """A soft mask of windows.

    Attributes:
        g: the merge mask G ``(B, n, N, P)``, columns sum to 1; padding has weight 0.
        u: the unmerge mask U ``(B, n, N, P)``, rows sum to 1.
        merged: X~ ``(B, n, P, C)``.
    """

    g: Tensor
    u: Tensor
    merged: Tensor


class Soft(MaskModule):
    """Softmax masks from a learned spatial prior and token similarity (as in the paper).

    The logits ``L = prior + scale * cos(z, x~ - mean of x~)`` compare each token with the current
    merged tokens: G is the softmax over the tokens; U, computed with the tokens that G merged, is
    the softmax over the merged tokens. Prior and logit scale are learned; no gradient flows through
    the comparison.

    Args:
        window: tokens per window side (w).
        keep: merged tokens per window (P), 1 .. N - 1.
        scale: initial logit scale: the logit of a difference of 1 in cosine similarity.
    """

    start: Tensor

    def __init__(self, window: int, keep: int, scale: float) -> None:
        super().__init__()
        self.window, self.keep = window, keep
        self.register_buffer("start", triangular_prior(window, prior_centers(window, keep)), False)
        # Learned as offsets from the start, so that weight decay pulls back to it.
        self.prior_offset = nn.Parameter(torch.zeros_like(self.start))
        self.start_scale = scale
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def prior(self) -> Tensor:
        """Prior logits ``(N, P)``."""
        return self.start + self.prior_offset

    def forward(self, tokens: Tensor, mass: Tensor | None) -> SoftGroups:
        """Group the tokens of every window.

        Args:
            tokens: ``(B, n, N, C)``; padding is zero.
            mass: number of tokens that each token stands for, 0 for padding ``(1 or B, n, N)``;
                None: 1.
        """
        prior = self.prior
        weights = 0.0 if mass is None else _log_mass(mass).unsqueeze(-1)  # (1 or B, n, N, 1)
        z = _direction(tokens)
        g = (prior + weights).softmax(-2).expand(*tokens.shape[:-1], -1)
        merged = g.transpose(-1, -2).to(tokens.dtype) @ tokens
        g = (self._logits(prior, z, merged) + weights).softmax(-2)
        if mass is not None:  # one that stands for padding alone
            g = g * (mass > 0).unsqueeze(-1)
        merged = g.transpose(-1, -2).to(tokens.dtype) @ tokens
        return SoftGroups(g, self._logits(prior, z, merged).softmax(-1), merged)

    def _logits(self, prior: Tensor, z: Tensor, merged: Tensor) -> Tensor:
        """L ``(B, n, N, P)``."""
        s = _direction(merged)
        # What all merged tokens have in common does not distinguish them.
        s = s - s.mean(-2, keepdim=True)
        return prior + (z @ s.transpose(-1, -2)) * (
            self.start_scale * self.log_scale.exp() / z.shape[-1]
        )


def _direction(x: Tensor) -> Tensor:
    """The compared vectors: ``(..., C)`` layer-normalised, without a gradient."""
    return F.layer_norm(x.detach(), (int(x.shape[-1]),))  # traced, a size is a tensor


def _log_mass(mass: Tensor) -> Tensor:
    """A token's weight as a logit; padding gets almost none."""
    # More than what keeps regions apart: a region of padding alone has nobody else's tokens.
    return torch.where(mass > 0, mass.clamp(min=1e-6).log(), -5e3)


def prior_centers(window: int, keep: int, shift: int = 0) -> Tensor:
    """Positions of merged tokens: ``(P, 2)`` row and column in tokens, evenly spread.

    With a shift, every part of the window gets its share, at least one.
    """
    cut = window - shift
    spans = [(0, cut), (cut, window)] if shift else [(0, window)]
    parts = [(rows, cols) for rows in spans for cols in spans]
    areas = [(r[1] - r[0]) * (c[1] - c[0]) for r, c in parts]
    counts = _allot(areas, keep)
    centers = [
        (rows[0] + y, cols[0] + x)
        for (rows, cols), count in zip(parts, counts, strict=True)
        for y, x in _spread(rows[1] - rows[0], cols[1] - cols[0], count)
    ]
    return torch.tensor(centers)


def _allot(areas: list[int], total: int) -> list[int]:
    """Split a total into integers proportional to areas, each between 1 and its area."""
    counts = [1] * len(areas)
    while sum(counts) < total:
        room = [i for i, area in enumerate(areas) if counts[i] < area]
        counts[max(room, key=lambda i: areas[i] / counts[i])] += 1
    return counts


def _spread(height: int, width: int, count: int) -> list[tuple[float, float]]:
    """``count`` centers in a rectangle, in lines; a square number in a square: a regular grid."""
    lines = min(max(round((count * height / width) ** 0.5), -(-count // width)), height, count)
    centers = []
    for i in range(lines):
        cols = count * (i + 1) // lines - count * i // lines
        centers += [((i + 0.5) * height / lines, (k + 0.5) * width / cols) for k in range(cols)]
    return centers


def triangular_prior(window: int, centers: Tensor, floor: float = 1e-3) -> Tensor:
    """Log of a triangular (bilinear) kernel around every center (ours).

    The weight of a token falls linearly to ``floor`` one pitch away, ``w / sqrt(P)`` tokens.
    As logits this is narrow area pooling one way and linear interpolation the other way.

    Args:
        window: tokens per window side (w).
        centers: ``(P, 2)``, see :func:`prior_centers`.
        floor: smallest weight along one axis; keeps the logits finite.

    Returns:
        ``(N, P)``.
    """
    pitch = window / len(centers) ** 0.5
    axis = torch.arange(window) + 0.5
    line = [
        (1 - (axis[:, None] - centers[None, :, k]).abs() / pitch).clamp(min=floor).log()
        for k in (0, 1)
    ]  # (w, P) each
    return (line[0][:, None] + line[1][None, :]).flatten(0, 1)

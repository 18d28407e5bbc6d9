"""Mask modules: from a window's tokens to the mask that merges them.

Source: a module that emits the merging mask from the tokens is the paper's (arXiv 2407.15219,
section 3). ``match`` and the form of ``soft`` are ours.

Letters: N = w * w tokens per window, P merged tokens, n windows per image, B images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import cached_by_size, window_regions
from .blocks import MaskModule
from .groups import Groups, SoftGroups
from .matching import match, rounds

MASKS = ("match", "soft")
REGIONS = 4  # a shifted window's parts that may not see each other
# Penalties of matching, whose squares outweigh any cost: region before padding.
REGION_PENALTY, PADDING_PENALTY = 100.0, 10.0


def build_mask(mask_type: str, window: int, keep: int, shift: int = 0) -> "WindowMask":
    """A mask module for windows of ``window x window`` tokens, ``keep`` of which are left.

    Args:
        mask_type: 'match' or 'soft'.
        window: tokens per window side (w).
        keep: merged tokens per window (P), 1 .. N - 1.
        shift: cyclic shift that the windows are cut after; at least ``REGIONS`` are kept then.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_mask(mask_type)
    least = min(REGIONS, window * window) if shift else 1
    if not least <= keep < window * window:
        raise ValueError(
            f"keep must lie in {least}..{window * window - 1} for a window of {window} x {window} "
            f"tokens{' that is shifted' * (shift > 0)}, got {keep!r}"
        )
    return {"match": Match, "soft": Soft}[mask_type](window, keep, shift)


def check_mask(mask_type: str) -> None:
    """Raise a ValueError unless there is such a mask."""
    if mask_type not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {mask_type!r}")


class WindowMask(MaskModule):
    """A mask module for windows of one size and shift; :meth:`for_windows` gives it for others.

    Args:
        window, keep, shift: as :func:`build_mask`.
    """

    def __init__(self, window: int, keep: int, shift: int = 0) -> None:
        super().__init__()
        self.window, self.keep, self.shift = window, keep, shift
        self.plan_entry = (keep, window)  # tokens that the plan keeps of a window, and its side
        self._others: dict[tuple[int, int], WindowMask] = {}

    def for_windows(self, window: int, shift: int) -> "WindowMask | None":
        """The mask for other windows, with all that is learned.

        It keeps the plan's share of their tokens, whatever windows came before.

        Args:
            window, shift: of the windows.

        Returns:
            None where nothing can be merged: no number below all tokens fits.
        """
        keep = kept_tokens(*self.plan_entry, window, shift)
        if keep >= window * window:
            return None
        if (window, keep, shift) == (self.window, self.keep, self.shift):
            return self
        if (window, shift) not in self._others:
            self._others[window, shift] = self._like(window, keep, shift)
        return self._others[window, shift]

    def _like(self, window: int, keep: int, shift: int) -> "WindowMask":
        raise NotImplementedError


def kept_tokens(keep: int, of: int, window: int, shift: int) -> int:
    """Tokens that are kept of a window by a plan that keeps ``keep`` of ``of x of``.

    A shifted window keeps one token of each of its parts at least.
    """
    tokens = window * window
    return max(round(keep / of**2 * tokens), min(REGIONS, tokens) if shift else 1)


class Match(WindowMask):
    """Groups of similar tokens, by matching; it has no parameters.

    Padding merges with padding first; tokens that the shift keeps apart never share a group.

    Args:
        window, keep, shift: as :func:`build_mask`.
    """

    def __init__(self, window: int, keep: int, shift: int = 0) -> None:
        super().__init__(window, keep, shift)
        self.schedule = rounds(window * window, keep, REGIONS if shift else 1)

    def forward(self, tokens: Tensor, mass: Tensor | None, shift_index: Tensor | None) -> Groups:
        """Group the tokens of every window.

        Args:
            tokens: ``(B, n, N, C)``; padding is zero.
            mass: 1 for a token, 0 for padding ``(1, n, N)``; None: no padding.
            shift_index: which shift mask each window takes ``(n,)``; None: not shifted.
        """
        learns = torch.is_grad_enabled() and tokens.requires_grad
        order, penalty = None, None
        if self.shift:
            order, region_penalty = shift_tables(self.window, self.shift, tokens.device)
            if shift_index is not None:
                penalty = region_penalty[shift_index].unsqueeze(0)  # (1, n, N)
        if mass is not None:
            padded = PADDING_PENALTY * (1 - mass.float())
            penalty = padded if penalty is None else penalty + padded
        matched = match(tokens, self.schedule, None, penalty, order, sums=not learns)
        return Groups.of(matched, mass, tokens.dtype)

    def _like(self, window: int, keep: int, shift: int) -> "Match":
        return Match(window, keep, shift)


class Soft(WindowMask):
    """Softmax masks from a learned spatial prior and what the tokens are (the paper's kind).

    The logits ``L = prior + scale * cos(z, x~ - mean of x~)`` compare each token with the merged
    tokens of the mask so far: G is the softmax over the tokens, U, from the tokens that G made,
    over the merged tokens. Prior and logit scale learn; no gradient goes through what is
    compared.

    Args:
        window, keep, shift: as :func:`build_mask`.
        scale: logit scale at the start: what a difference of 1 in cosine similarity adds.
    """

    start: Tensor
    roots: Tensor
    apart: Tensor | None

    def __init__(self, window: int, keep: int, shift: int = 0, scale: float = 64.0) -> None:
        super().__init__(window, keep, shift)
        centers = prior_centers(window, keep, shift)
        self.register_buffer("start", triangular_prior(window, centers), False)
        self.register_buffer("roots", (centers.floor() @ torch.tensor([window, 1.0])).long(), False)
        apart = None
        if shift:
            regions = window_regions(window, shift)  # (4, N)
            root_regions = regions[:, self.roots]  # (4, P)
            apart = (regions.unsqueeze(-1) != root_regions.unsqueeze(-2)) * -1e4  # (4, N, P)
        self.register_buffer("apart", apart, False)
        # Learned as differences to the start, to which weight decay then leads back.
        self.prior_offset = nn.Parameter(torch.zeros_like(self.start))
        self.start_scale = scale
        self.log_scale = nn.Parameter(torch.zeros(()))

    def for_windows(self, window: int, shift: int) -> "Soft | None":
        """As :meth:`WindowMask.for_windows`; it is learned for one size of windows.

        Raises:
            ValueError: for windows of another size, or shifted where they were not.
        """
        if window == self.window and shift in (0, self.shift):
            return self
        raise ValueError(
            f"a soft mask of {self.window} x {self.window} tokens does not fit windows of "
            f"{window} x {window}: call ltm_mm.remove before you change the size, and "
            "ltm_mm.apply after it"
        )

    @property
    def prior(self) -> Tensor:
        """Prior logits ``(N, P)``."""
        return self.start + self.prior_offset

    def forward(
        self, tokens: Tensor, mass: Tensor | None, shift_index: Tensor | None
    ) -> SoftGroups:
        """As :meth:`Match.forward`; ``mass``: how many tokens each token stands for."""
        prior = self.prior
        if self.apart is not None and shift_index is not None:
            prior = prior + self.apart[shift_index].unsqueeze(0)  # (1, n, N, P)
        weights = 0.0 if mass is None else _log_mass(mass).unsqueeze(-1)  # (1 or B, n, N, 1)
        z = _direction(tokens)
        g = (prior + weights).softmax(-2).expand(*tokens.shape[:-1], -1)
        merged = g.transpose(-1, -2).to(tokens.dtype) @ tokens
        g = (self._logits(prior, z, merged) + weights).softmax(-2)
        if mass is not None:  # one that stands for padding alone
            g = g * (mass > 0).unsqueeze(-1)
        merged = g.transpose(-1, -2).to(tokens.dtype) @ tokens
        u = self._logits(prior, z, merged).softmax(-1)
        roots = self.roots.expand(*tokens.shape[:-2], -1)
        return SoftGroups(g, u, merged, roots, mass)

    def _logits(self, prior: Tensor, z: Tensor, merged: Tensor) -> Tensor:
        """L ``(B, n, N, P)``."""
        s = _direction(merged)
        # What all merged tokens share decides nothing between them.
        s = s - s.mean(-2, keepdim=True)
        return prior + (z @ s.transpose(-1, -2)) * (
            self.start_scale * self.log_scale.exp() / z.shape[-1]
        )


def _direction(x: Tensor) -> Tensor:
    """What is compared: ``(..., C)`` layer-normalised, without a gradient."""
    return F.layer_norm(x.detach(), (int(x.shape[-1]),))  # traced, a size is a tensor


def _log_mass(mass: Tensor) -> Tensor:
    """What a token weighs, as a logit; padding next to nothing."""
    # More than what keeps regions apart: a region of padding alone has nobody else's tokens.
    return torch.where(mass > 0, mass.clamp(min=1e-6).log(), -5e3)


@cached_by_size
def shift_tables(window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What matching in shifted windows looks up.

    Returns:
        The tokens' order ``(N,)``: part by part, so that every round splits every part of a window
        evenly; and the penalties of regions by shift mask ``(4, N)``.
    """
    penalty = REGION_PENALTY * window_regions(window, shift)
    return window_order(window, shift).to(device), penalty.to(device)


def window_order(window: int, shift: int) -> Tensor:
    """Token ids of a window ``(N,)``, one part that the shift cuts after the other."""
    token_ids = torch.arange(window * window).view(window, window)
    cut = window - shift
    rows = (token_ids[:cut], token_ids[cut:])
    parts = [part for half in rows for part in (half[:, :cut], half[:, cut:])]
    return torch.cat([part.flatten() for part in parts])


def prior_centers(window: int, keep: int, shift: int = 0) -> Tensor:
    """Where merged tokens lie: ``(P, 2)`` row and column in tokens, spread evenly.

    With a shift every part of the window has its share, one at least.
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
    """Whole numbers near the areas' shares of a total, each from 1 to its area."""
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

"""Mask modules: from a window's tokens to the mask that merges them.

Source: a module that emits the merging mask from the tokens is the paper's (arXiv 2407.15219,
section 3); matching is ours.

Letters: N = w * w tokens per window, P merged tokens, n windows per image, B images.
"""

import torch
from torch import Tensor

from ..ops import cached_by_size, window_regions
from .blocks import MaskModule
from .groups import Groups
from .matching import match, rounds

REGIONS = 4  # parts of a shifted window that are masked from each other
# Penalties of matching; their squares outweigh any cost, regions more than padding.
REGION_PENALTY, PADDING_PENALTY = 100.0, 10.0


def build_mask(window: int, keep: int, shift: int = 0) -> "Match":
    """A mask module for windows of ``window x window`` tokens, ``keep`` of which are left.

    Args:
        window: tokens per window side (w).
        keep: merged tokens per window (P), 1 .. N - 1.
        shift: cyclic shift before the windows are cut; if not 0, at least ``REGIONS`` are kept.

    Raises:
        ValueError: if an argument is out of range.
    """
    least = min(REGIONS, window * window) if shift else 1
    if not least <= keep < window * window:
        raise ValueError(
            f"keep must lie in {least}..{window * window - 1} for a window of {window} x {window} "
            f"tokens{' that is shifted' * (shift > 0)}, got {keep!r}"
        )
    return Match(window, keep, shift)


class WindowMask(MaskModule):
    """A mask module for windows of one size and shift; see :meth:`for_windows` for others.

    Args:
        window, keep, shift: as :func:`build_mask`.
    """

    def __init__(self, window: int, keep: int, shift: int = 0) -> None:
        super().__init__()
        self.window, self.keep, self.shift = window, keep, shift
        self.plan_entry = (keep, window)  # tokens that the plan keeps of a window, and its side
        self._others: dict[tuple[int, int], WindowMask] = {}

    def for_windows(self, window: int, shift: int) -> "WindowMask | None":
        """The mask module for other windows, with the same learned parameters.

        It keeps the plan's share of their tokens, independent of earlier windows.

        Args:
            window, shift: of the windows.

        Returns:
            None if nothing can be merged: no number below that of all tokens fits.
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
    """Tokens kept per window by a plan that keeps ``keep`` of ``of x of`` tokens.

    A shifted window keeps at least one token of each of its parts.
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
            shift_index: index of each window's shift mask ``(n,)``; None: not shifted.
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


@cached_by_size
def shift_tables(window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lookup tables for matching in shifted windows.

    Returns:
        The tokens' order ``(N,)``, part by part, which makes every round split every part of a
        window evenly; and the region penalties per shift mask ``(4, N)``.
    """
    penalty = REGION_PENALTY * window_regions(window, shift)
    return window_order(window, shift).to(device), penalty.to(device)


def window_order(window: int, shift: int) -> Tensor:
    """Token ids of a window ``(N,)``, ordered by the parts that the shift cuts it into."""
    token_ids = torch.arange(window * window).view(window, window)
    cut = window - shift
    rows = (token_ids[:cut], token_ids[cut:])
    parts = [part for half in rows for part in (half[:, :cut], half[:, cut:])]
    return torch.cat([part.flatten() for part in parts])

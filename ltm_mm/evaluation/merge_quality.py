"""What a merging mask does: how soft it is, how far it moved, whether it keeps to segments.

Source: achievable segmentation accuracy is the superpixel literature's (Liu et al., CVPR 2011);
applying it to the groups of a merging mask is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Merge, hat_prior, pad_to_windows, to_windows


def row_entropy(back: Tensor) -> Tensor:
    """Entropy in nats of each token's row of U: ``(..., N, P)`` -> ``(..., N)``."""
    return -torch.xlogy(back, back).sum(-1)


def prior_shift(back: Tensor, window: int) -> Tensor:
    """How far each token's row of U moved from the untrained spatial prior's.

    Args:
        back: U ``(..., N, P)``.
        window: tokens per window side.

    Returns:
        Total variation distance ``(..., N)``, 0 (the same) to 1 (no slot in common).
    """
    return (back - untrained(back, window)).abs().sum(-1) / 2


def untrained(back: Tensor, window: int) -> Tensor:
    """U of the spatial prior ``(N, P)``."""
    slots = round(back.shape[-1] ** 0.5)
    return hat_prior(window, slots).softmax(-1).to(back)


def real_rows(merged: Merge) -> Tensor:
    """Which rows of U belong to tokens and not to padding, ``(1, n, N)`` bool."""
    ones = torch.ones_like(merged.tokens[:1, ..., :1])
    return to_windows(pad_to_windows(ones, merged.window), merged.window).squeeze(-1) > 0


def achievable_accuracy(counts: Tensor, back: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Pixels that keep their segment if every group of tokens may have only one.

    A token belongs to the slot that its row of U gives most to.

    Args:
        counts: pixels of each segment in every token ``(B, H, W, K)``.
        back: U ``(B, n, N, P)``.
        window: tokens per window side.

    Returns:
        Pixels that keep their segment, and all pixels: two scalars. Their ratio is the
        achievable segmentation accuracy.
    """
    tokens = to_windows(pad_to_windows(counts.double(), window), window)  # (B, n, N, K)
    member = F.one_hot(back.argmax(-1), back.shape[-1]).to(tokens)  # (B, n, N, P)
    groups = member.transpose(-1, -2) @ tokens  # (B, n, P, K)
    return groups.amax(-1).sum(), groups.sum()

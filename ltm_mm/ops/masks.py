"""Merging masks: the spatial prior, and the two masks that logits give.

Source: the merging mask G with columns that sum to 1 is the paper's (arXiv
2407.15219, section 3); the windowed prior and the way back U are ours.
"""

import torch
from torch import Tensor


def hat_prior(window: int, slots: int, floor: float = 1e-3) -> Tensor:
    """Log of a separable hat kernel between a window and its slots (ours).

    Slot j of a row is centred at ``(j + 1/2) * window / slots``, and its weight
    falls linearly to ``floor`` one slot pitch away. Used as logits this is narrow
    area pooling one way and linear interpolation the other way; a wider kernel
    blurs, and training can widen this one where that helps.

    Args:
        window: tokens per window side (w).
        slots: slots per window side (s), ``1 <= slots <= window``.
        floor: smallest weight along one axis; keeps the logits finite.

    Returns:
        Logits ``(w * w, s * s)``.
    """
    tokens = torch.arange(window, dtype=torch.float64) + 0.5
    centres = (torch.arange(slots, dtype=torch.float64) + 0.5) * window / slots
    distance = (tokens[:, None] - centres[None, :]).abs() * slots / window
    line = (1 - distance).clamp(min=floor).log()  # (w, s)
    grid = line[:, None, :, None] + line[None, :, None, :]  # (w, w, s, s)
    return grid.reshape(window * window, slots * slots).float()


def merge_mask(logits: Tensor, mass: Tensor | None = None) -> Tensor:
    """The mask that merges.

    Args:
        logits: ``(..., N, P)``.
        mass: how many original tokens each token stands for, ``(..., N)``; 0 for
            padding. At least one token of every window has mass. None: 1 each.

    Returns:
        G ``(..., N, P)``, every column sums to 1 and tokens without mass have
        weight zero.
    """
    rows = _rows(logits)
    weighted = rows if mass is None else rows + mass.log().unsqueeze(-2)
    return weighted.softmax(-1).mT


def back_mask(logits: Tensor) -> Tensor:
    """The mask of the way back (ours).

    Args:
        logits: ``(..., N, P)``.

    Returns:
        U ``(..., N, P)``, every row sums to 1.
    """
    return _rows(logits).softmax(-2).mT


def _rows(logits: Tensor) -> Tensor:
    """One row per slot in memory: both softmaxes and all products with the masks want it so."""
    return logits.mT.contiguous()  # (..., P, N)

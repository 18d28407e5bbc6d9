"""The mask module: which token goes into which slot, and which slot leads back to it.

Source: a module that emits the merging mask from the tokens and the previous mask
is the paper's (arXiv 2407.15219, section 3); windows, the prior logits and the form of
the content step are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import back_mask, hat_prior, merge, merge_mask, unmerge

# What a difference of 1 in cosine similarity adds to a logit at the start. Neighbours differ by
# some hundredths, the prior's logits by about 1: with 1 instead, content decides nothing.
SHARP = 64.0
# Convolutions expect slots in their places: where they run on slots, content may say less.
GENTLE = 8.0


class MaskModule(nn.Module):
    """Masks of windows from a spatial prior and ``steps`` content steps.

    L0 are the prior's logits, z and s the layer-normalised tokens and slots of the mask so far
    (normalised without weights, so that ``z . s / C`` is a cosine similarity). A content step
    compares them: ``L = L0 + sharpness * z (s - mean of s)^T / C``. Each but the last makes a
    new merging mask, ``G = softmax over tokens of L``; the last one decides the way back from
    the slots that G has made, ``U = softmax over slots of L``: a token shares the update of
    the slots that are near *and* like it. With one step G is the prior's.

    A step is soft k-means on the tokens of a window. It has the form of the paper's gradient
    step on the mask, linear in z, with the slots less their mean as its direction. No gradient
    goes through z and s: groups follow what the tokens are, tokens do not change to be grouped
    (docs/study.md has what that gradient costs). Prior and sharpness learn.

    Args:
        window: tokens per window side (w).
        slots: slots per window side (s), ``1 <= slots < window``.
        steps: content steps, >= 0; 0 leaves the learnable prior alone.
        sharpness: what a difference of 1 in cosine similarity adds to a logit at the start.

    Raises:
        ValueError: if ``slots`` or ``steps`` is out of range.
    """

    hat: Tensor

    def __init__(self, window: int, slots: int, steps: int = 2, sharpness: float = SHARP) -> None:
        super().__init__()
        if not 1 <= slots < window:
            raise ValueError(
                f"cannot merge a window of {window} x {window} tokens into {slots} x {slots} "
                f"slots: slots must lie in 1..{window - 1}"
            )
        if not (isinstance(steps, int) and steps >= 0):
            raise ValueError(f"steps must be an integer >= 0, got {steps!r}")
        self.steps = steps
        self.register_buffer("hat", hat_prior(window, slots), persistent=False)
        # Learnt as a difference, so that weight decay pulls the prior back to the hat and
        # not towards a mask that blurs the whole window.
        self.prior_offset = nn.Parameter(torch.zeros_like(self.hat))
        if steps:
            # Learnt as a logarithm: a learning rate for weights would not move a number of
            # this size, and weight decay pulls it back to the start.
            self.start = sharpness
            self.log_sharpness = nn.Parameter(torch.zeros(()))

    @property
    def prior(self) -> Tensor:
        """Prior logits L0 ``(N, P)``."""
        return self.hat + self.prior_offset

    @property
    def sharpness(self) -> Tensor:
        """What a difference of 1 in cosine similarity adds to a logit (none without steps)."""
        return self.start * self.log_sharpness.exp()

    def forward(self, tokens: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Merge every window, and say how it leads back.

        Args:
            tokens: Z ``(B, n, N, C)``.
            mass: ``(1 or B, n, N)``, 0 for padding; None: 1 each.

        Returns:
            G ``(B, n, N, P)``, the slots X~ ``(B, n, P, C)`` and U ``(B, n, N, P)``.
        """
        prior = self.prior
        shape = (*tokens.shape[:2], *prior.shape)
        to_slots = merge_mask(prior, mass).expand(shape)
        slots = merge(tokens, to_slots.to(tokens.dtype))
        if not self.steps:
            return to_slots, slots, back_mask(prior).expand(shape)
        z = _direction(tokens)
        for _ in range(self.steps - 1):
            to_slots = merge_mask(self._logits(prior, z, slots), mass)
            slots = merge(tokens, to_slots.to(tokens.dtype))
        return to_slots, slots, back_mask(self._logits(prior, z, slots))

    def _logits(self, prior: Tensor, z: Tensor, slots: Tensor) -> Tensor:
        """L ``(B, n, N, P)`` of a content step."""
        s = _direction(slots)
        # What all slots share decides nothing between them; the rest is small enough for a
        # product in half precision.
        s = s - s.mean(-2, keepdim=True)
        content = unmerge(z.mT, s * (self.sharpness / z.shape[-1]))  # (B, n, P, N)
        return (prior.mT + content).mT


def _direction(x: Tensor) -> Tensor:
    """What content steps compare: ``(..., C)`` layer-normalised, without a gradient."""
    return F.layer_norm(x.detach(), x.shape[-1:])

"""The mask module: which token goes into which slot.

Source: a module that emits the merging mask from the tokens and the previous mask
is the paper's (arXiv 2407.15219, section 3); windows, the prior logits and the
amortised step are ours.
"""

import torch
from torch import Tensor, nn

from ..ops import hat_prior, merge, merge_masks, unmerge
from .linear import run_mlp


class MaskModule(nn.Module):
    """Merging masks of windows, from a spatial prior and ``steps`` content steps.

    With z the normalised tokens and G the mask so far (at first the prior's), a
    step is ``S = G^T z``, ``V = S + MLP(S)``, ``L = L0 + scale * z V^T / C``. It is
    the amortised form of the paper's gradient step on the mask: the gradient of
    the bound with respect to G is linear in z, and V stands for its direction.

    Args:
        dim: channels (C).
        window: tokens per window side (w).
        slots: slots per window side (s), ``1 <= slots < window``.
        steps: content steps, >= 0; 0 leaves the learnable prior alone.

    Raises:
        ValueError: if ``slots`` or ``steps`` is out of range.
    """

    hat: Tensor

    def __init__(self, dim: int, window: int, slots: int, steps: int = 1) -> None:
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
            hidden = max(dim // 8, 8)
            self.norm = nn.LayerNorm(dim)
            last = nn.Linear(hidden, dim)
            nn.init.zeros_(last.weight)  # start from plain slot means
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), last)
            self.scale = nn.Parameter(torch.ones(()))

    @property
    def prior(self) -> Tensor:
        """Prior logits L0 ``(N, P)``."""
        return self.hat + self.prior_offset

    def forward(self, tokens: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Masks of every window.

        Args:
            tokens: Z ``(B, n, N, C)``.
            mass: ``(1 or B, n, N)``, 0 for padding; None: 1 each.

        Returns:
            G and U, ``(B, n, N, P)`` each (broadcast over B and n where the prior
            alone decides).
        """
        prior = self.prior
        masks = merge_masks(prior, mass)
        if not self.steps:
            shape = (*tokens.shape[:2], *prior.shape)
            return masks[0].expand(shape), masks[1].expand(shape)
        z = self.norm(tokens)  # (B, n, N, C)
        for _ in range(self.steps):
            slots = merge(z, masks[0].to(z.dtype))  # (B, n, P, C)
            step = slots + run_mlp(self.mlp[0], self.mlp[1], self.mlp[2], slots)
            direction = step * (self.scale / z.shape[-1])
            content = unmerge(z.mT, direction)  # (B, n, P, N)
            masks = merge_masks((prior.mT + content).mT, mass)
        return masks

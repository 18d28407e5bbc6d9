"""The detail: a thin block on all tokens that learns what merging loses (ours).

A merged block gives all members of a group the same update. The plain block would have updated them
slightly differently; ``phi`` learns how, and only its *difference* within a group counts::

    Y = Z + U (f(X~) - X~) + phi(Z) - U phi(X~)        phi(x) = B gelu(A x / rms(x) + a)

a coarse-grid correction by the full block f and a fine-grid one by the thin phi, as in multigrid. B
starts at zero. Identical tokens get no correction; with all tokens kept there is none.

Related work: Token Compensator (ECCV 2024) distils low-rank changes of the weights of merged ViT
classifiers. Here the weights can stay frozen, and the correction is computed token by token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import Groups

SHARE = 12  # channels of a block per hidden channel of its phi


class Detail(nn.Module):
    """phi of one block: a linear layer, a GELU, and a linear layer that starts at zero.

    Args:
        dim: channels of the tokens (C).
        hidden: channels of the hidden layer (r); None: ``C / 12``, rounded up to a multiple of 8.

    Raises:
        ValueError: if a size is not an int >= 1.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = -(-dim // (8 * SHARE)) * 8 if hidden is None else hidden
        for name, size in (("dim", dim), ("hidden", hidden)):
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be an int >= 1, got {size!r}")
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise such that phi is zero."""
        nn.init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)

    def hidden(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``gelu(A x / rms(x) + a)``.

        Args:
            x: ``(..., C)``.
            lengths: Euclidean norms of x ``(...)``, if known.

        Returns:
            ``(..., r)``.
        """
        if lengths is None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            lengths = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
        scale = x.shape[-1] ** 0.5 / lengths.clamp(min=1e-6).unsqueeze(-1)
        projected = F.linear(x, self.down.weight)
        return F.gelu(torch.addcmul(self.down.bias, projected, scale.to(projected.dtype)))

    def difference(self, tokens: Tensor, merged: Tensor, mask: Groups) -> Tensor:
        """Difference of the hidden layer between a token and its group ``(..., N, r)``."""
        of_groups = mask.unmerge(self.hidden(merged))
        return self.hidden(tokens, mask.lengths) - of_groups

    def forward(self, tokens: Tensor, merged: Tensor, mask: Groups) -> Tensor:
        """``phi(Z) - U phi(X~)``.

        Args:
            tokens: Z ``(..., N, C)``.
            merged: X~ ``(..., P, C)``.
            mask: the mask that merged them.

        Returns:
            ``(..., N, C)``.
        """
        return self.up(self.difference(tokens, merged, mask))

    def add_to(self, out: Tensor, tokens: Tensor, merged: Tensor, mask: Groups) -> Tensor:
        """``out + forward(...)``, in place where possible; without gradients."""
        difference, weight = self.difference(tokens, merged, mask), self.up.weight
        if not out.dtype == difference.dtype == weight.dtype:
            return out + self.up(difference)
        out.view(-1, out.shape[-1]).addmm_(difference.flatten(0, -2), weight.t())
        return out

"""The one formula: how a block's update of merged tokens reaches all tokens."""

import torch
from torch import Tensor

from .detail import Detail
from .groups import Groups


def unmerge_update(
    tokens: Tensor, mask: Groups, merged: Tensor, updated: Tensor, detail: Detail | None = None
) -> Tensor:
    """Add a block's update of merged tokens back to all tokens (ours).

    ``Y = Z + U (f(X~) - X~)``, and with a detail ``+ phi(Z) - U phi(X~)``. Z itself is never
    averaged; only the update is shared within a group. If f changes nothing and phi is zero, Y
    equals Z bit for bit.

    Args:
        tokens: Z ``(..., N, C)``.
        mask: the tokens' groups.
        merged: X~ ``(..., P, C)``.
        updated: f(X~) ``(..., P, C)``.
        detail: phi; None: zero.

    Returns:
        Y ``(..., N, C)``.
    """
    update = mask.unmerge(updated - merged)
    if torch.is_grad_enabled() or update.dtype != tokens.dtype:
        out = tokens + update
        return out if detail is None else out + detail(tokens, merged, mask)
    out = update.add_(tokens)
    return out if detail is None else detail.add_to(out, tokens, merged, mask)

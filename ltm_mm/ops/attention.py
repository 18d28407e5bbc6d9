"""PyTorch's attention, in a form that can be exported for all sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .graphs import exporting, transformed
from .windows import packed


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    written_out: bool = False,
) -> Tensor:
    """PyTorch's attention, which can be exported for all sizes and transformed by ``torch.func``.

    Args:
        q, k, v: ``(n, h, N, d)``.
        bias: added to the logits; None: none.
        scale: of the logits.
        dropout: of the attention weights, 0..1.
        written_out: in matrix products, which are differentiable twice.

    Returns:
        ``(n, N, h * d)``.
    """
    n, heads, count, dim = q.shape
    if exporting() or transformed() or written_out:
        # The fused kernel and `@` ask which sizes are 1, and fix them.
        q, k, v = (packed(x).flatten(0, 1) for x in (q, k, v))  # (n * h, N, d)
        logits = (torch.bmm(q, k.transpose(1, 2)) * scale).view(n, heads, count, -1)  # (n, h, N, N)
        weights = (logits if bias is None else logits + bias).softmax(-1).flatten(0, 1)
        weights = F.dropout(weights, dropout, training=dropout > 0)
        out = torch.bmm(weights, v).view(n, heads, count, -1)
        return packed(out.transpose(1, 2)).flatten(2)
    out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
    return out.transpose(1, 2).reshape(n, count, heads * dim)

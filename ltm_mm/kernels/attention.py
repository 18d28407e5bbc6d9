"""Attention within many small windows.

Source: window attention is Swin's (Liu et al., ICCV 2021); which kernel runs is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import fused_attention
from .switch import uses_onednn


def window_attention(qkv: Tensor, bias: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Multi-head attention of every window's tokens among themselves.

    On the CPU, where :func:`uses_onednn`, as batched matrix products: PyTorch's fused kernel
    is made for long sequences and takes up to four times as long on 25 tokens.
    Elsewhere the fused kernel runs, on the CPU without gradients only: it has no second ones.

    Args:
        qkv: queries, keys and values ``(n, N, 3, h, d)``: n windows of N tokens, h heads
            of d channels.
        bias: added to the logits ``(n or 1, h, N, N)``.
        scale: of the logits.
        dropout: of the attention weights, 0..1.

    Returns:
        ``(n, N, h * d)``.
    """
    n, count, _, heads, dim = qkv.shape
    if not uses_onednn(qkv, bias):
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (n, h, N, d)
        return fused_attention(
            q, k, v, bias.to(q.dtype), scale, dropout, _may_differentiate_twice(qkv)
        )
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, n * heads, count, dim).unbind(0)
    logits = torch.bmm(q, k.transpose(1, 2)).view(n, heads, count, count)
    learns = torch.is_grad_enabled()
    logits = torch.add(bias, logits, alpha=scale, out=None if learns else logits)
    weights = logits.softmax(-1).view(n * heads, count, count)
    out = torch.bmm(F.dropout(weights, dropout, training=dropout > 0), v)  # (n * h, N, d)
    return out.view(n, heads, count, dim).transpose(1, 2).reshape(n, count, heads * dim)


def _may_differentiate_twice(x: Tensor) -> bool:
    """Whether second derivatives may be asked for where the fused kernel gains nothing."""
    learns = torch.is_grad_enabled() and x.requires_grad
    return learns and x.device.type == "cpu" and not torch.compiler.is_compiling()

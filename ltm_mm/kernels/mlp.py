"""The MLP of a transformer block on the CPU, some rows at a time.

The hidden layer is four times as wide as the tokens and by far the largest tensor of a
transformer. Worked on in chunks it stays in the cache, and it is not kept for the backward
pass, which computes it again chunk by chunk: less memory, and no slower, because reading
and writing it took longer than the product does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import CHUNK, linear, product, weight_gradient

Layer = tuple[Tensor, Tensor]  # weight (C_out, C_in), bias (C_out,)


def mlp(x: Tensor, first: Layer, second: Layer) -> Tensor:
    """``linear(gelu(linear(x)))``, for what :func:`ltm_mm.kernels.uses_onednn` says yes to.

    Args:
        x: ``(..., C)``.
        first, second: weight and bias of the two layers.

    Returns:
        ``(..., C_out)``.
    """
    tensors = (x, *first, *second)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Mlp.apply(*tensors)
    outs = [
        product(product(rows, *first, gelu=True), *second)
        for rows in x.flatten(0, -2).split(_rows(first[0]))
    ]
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    return out.view(*x.shape[:-1], -1)


def _rows(weight: Tensor) -> int:
    """How many rows are worked on at a time."""
    return max(CHUNK // weight.shape[0], 1)


class _Mlp(torch.autograd.Function):
    """Keeps its input and recomputes the hidden layer."""

    @staticmethod
    def forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return mlp(x, (w1, b1), (w2, b2))

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, _: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        # In functions that have derivatives, for gradients of gradients.
        x, w1, b1, w2 = ctx.saved_tensors  # type: ignore[attr-defined]
        learns = any(ctx.needs_input_grad[1:])  # type: ignore[attr-defined]
        d_w1 = d_b1 = d_w2 = None
        d_x, step = [], _rows(w1)
        grads = grad.reshape(-1, grad.shape[-1])
        for rows, d_out in zip(x.flatten(0, -2).split(step), grads.split(step), strict=True):
            hidden = linear(rows, w1, b1)
            d_hidden = linear(d_out, w2.t())
            if learns:
                d_w2 = _add(d_w2, weight_gradient(d_out, F.gelu(hidden)))
            d_hidden = torch.ops.aten.gelu_backward(d_hidden, hidden)
            if learns:
                d_w1 = _add(d_w1, weight_gradient(d_hidden, rows))
                d_b1 = _add(d_b1, d_hidden.sum(0))
            d_x.append(linear(d_hidden, w1.t()))
        return torch.cat(d_x).view_as(x), d_w1, d_b1, d_w2, grads.sum(0)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)

"""Linear layers on the CPU through oneDNN (ours).

PyTorch gives single-precision linear layers on x86 to MKL, but brings oneDNN's as well
(``torch.compile`` uses it). That one takes the widest vector instructions of processors
of any maker, adds the bias and applies a GELU on the way, without passes of their own:
about twice as fast on an AMD EPYC. Everywhere else (GPU, half precision, autocast,
compiled and exported graphs) these functions are ``F.linear`` and ``F.gelu``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .switch import uses_onednn

# Values of a hidden layer that are worked on at a time (4 MB): they stay in the cache and
# in memory that the allocator already holds.
CHUNK = 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``, the faster way where there is one; differentiable twice.

    Args:
        x: ``(..., C_in)``.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)`` or None.

    Returns:
        ``(..., C_out)``.
    """
    if not uses_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def add_by_rows(x: Tensor, update: Callable[[Tensor], Tensor], hidden: int) -> Tensor:
    """``x + update(x)``, without gradients some rows at a time.

    Args:
        x: ``(..., C)``.
        update: works on every row by itself.
        hidden: values per row of the widest tensor that it makes.

    Returns:
        ``(..., C)``.
    """
    if torch.is_grad_enabled() or not uses_onednn(x):
        return x + update(x)
    rows, out = x.flatten(0, -2), x.new_empty(x.shape)
    step = max(CHUNK // hidden, 1)
    for part, to in zip(rows.split(step), out.flatten(0, -2).split(step), strict=True):
        torch.add(part, update(part), out=to)
    return out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """oneDNN's linear layer without gradients, with a GELU where wanted.

    For tensors that :func:`.switch.uses_onednn` says yes to.
    """
    activation, algorithm = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


class _Linear(torch.autograd.Function):
    """The forward pass and both products of the backward pass through oneDNN."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, _: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            linear(grad, weight.t()) if needs_x else None,
            weight_gradient(rows, x.flatten(0, -2)) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x`` of ``(n, C_out)`` and ``(n, C_in)``: ``(C_out, C_in)``."""
    # oneDNN is fast where the result is wider than high.
    if x.shape[1] >= grad.shape[1]:
        return linear(grad.t(), x.t())
    return linear(x.t(), grad.t()).t().contiguous()

"""Focal losses (Lin et al., ICCV 2017) as mmcv's ``_ext`` offers them.

Both take an optional weight per class, indexed by the *target* class as in mmcv;
an empty tensor stands for none. The arithmetic is done in at least float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm_mm.compat.precision import wide


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit into ``output``.

    Args:
        input: logits, ``(N, C)``.
        target: classes, ``(N,)`` int64; any other value than 0..C-1 is background.
        weight: ``(C,)`` or empty.
        output: ``(N, C)``, written.
        gamma: focusing exponent.
        alpha: weight of the positives; negatives have ``1 - alpha``.
    """
    logits = wide(input)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    positive = -alpha * q**gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * p**gamma * F.logsigmoid(-logits)
    _write(output, torch.where(_is_target(input, target), positive, negative), target, weight)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each logit's loss into ``grad_input``, ``(N, C)``."""
    logits = wide(input)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    positive = -alpha * q**gamma * (q - gamma * p * F.logsigmoid(logits))
    negative = -(1 - alpha) * p**gamma * (gamma * q * F.logsigmoid(-logits) - p)
    _write(grad_input, torch.where(_is_target(input, target), positive, negative), target, weight)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each row into ``output``.

    Args:
        input: probabilities (mmcv has taken the softmax), ``(N, C)``.
        target: classes, ``(N,)`` int64; a negative one gives loss 0.
        weight: ``(C,)`` or empty.
        output: ``(N,)``, written.
        gamma: focusing exponent.
        alpha: weight of the loss.
    """
    p = _target_probability(input, target)
    loss = -alpha * (1 - p) ** gamma * p.log()
    _write(output, loss.where(target >= 0, 0.0), target, weight)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative by the *logits* into ``grad_input``, ``(N, C)``.

    ``buff`` ``(N,)`` receives ``p dLoss/dp`` of the target's probability p, the
    factor that all logits of a row share.
    """
    p = _target_probability(input, target)
    q = (1 - p).clamp(min=torch.finfo(torch.float32).tiny)  # 0 ** (gamma - 1) may be inf
    shared = alpha * (gamma * q ** (gamma - 1) * p * p.log() - q**gamma)
    _write(buff, shared.where(target >= 0, 0.0), target, weight)
    is_target = _is_target(input, target)
    grad_input.copy_(wide(buff)[:, None] * (is_target.to(p.dtype) - wide(input)))


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    """``(N, C)`` bool: is this the row's target class?"""
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _target_probability(probabilities: Tensor, target: Tensor) -> Tensor:
    """``(N,)``: the probability of each row's target, positive so that its log is finite."""
    p = wide(probabilities).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return p.clamp(min=torch.finfo(torch.float32).tiny)


def _write(output: Tensor, values: Tensor, target: Tensor, weight: Tensor) -> None:
    """Copy the values, times the weight of each row's target class, into ``output``."""
    if weight.numel():
        row = wide(weight)[target]
        values = values * row.view(-1, *[1] * (values.dim() - 1))
    output.copy_(values)

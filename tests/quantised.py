"""Linear weights in 8 bits as a tensor subclass, as torchao's are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Weight(Tensor):
    """A weight ``(C_out, C_in)`` in 8 bits, which takes part in ``F.linear`` only."""

    values: Tensor
    scales: Tensor

    @staticmethod
    def of(weight: Tensor) -> Int8Weight:
        scales = weight.abs().amax(1, keepdim=True) / 127
        made = Tensor._make_wrapper_subclass(Int8Weight, weight.shape, dtype=weight.dtype)
        made.values, made.scales = (weight / scales).round().to(torch.int8), scales
        return made

    @property
    def exact(self) -> Tensor:
        return self.values * self.scales

    @classmethod
    def __torch_function__(cls, func: Callable, types: object, args: tuple = (), kwargs=None):
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: object, args: tuple = (), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} is not implemented for {cls.__name__}")


def _linear(input: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    return F.linear(input, weight.exact, bias)


def quantise(model: nn.Module) -> int:
    """Quantise the weights of all linear layers, in place; returns how many there are."""
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    for layer in layers:
        layer.weight = nn.Parameter(Int8Weight.of(layer.weight.detach()), requires_grad=False)
    return len(layers)


def dequantise(model: nn.Module) -> None:
    """Put plain tensors in place of quantised ones, which are the same numbers."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.weight = nn.Parameter(layer.weight.exact, requires_grad=False)

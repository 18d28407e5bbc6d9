"""Plain layers on the kernels, whoever built them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .linear import linear
from .mlp import mlp
from .switch import uses_onednn


def run_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, with an untouched ``nn.Linear`` through :func:`ltm_mm.kernels.linear`.

    Args:
        layer: a linear layer, or what took its place (quantised, with adapters, hooked):
            that is called as it is.
        x: ``(..., C_in)``.

    Returns:
        ``(..., C_out)``.
    """
    if is_unmodified(layer):
        return linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    return layer(x)


def run_mlp(first: nn.Module, act: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """``second(act(first(x)))``, through :func:`ltm_mm.kernels.mlp` where that can.

    Args:
        first, act, second: the layers.
        x: ``(..., C)``.

    Returns:
        ``(..., C)``.
    """
    if _is_gelu(act) and is_unmodified(first) and is_unmodified(second):
        layers = [(layer.weight, layer.bias) for layer in (first, second)]
        tensors = [tensor for layer in layers for tensor in layer]
        if all(t is not None for t in tensors) and uses_onednn(x, *tensors):  # type: ignore[arg-type]
            return mlp(x, *layers)  # type: ignore[arg-type]
    return run_linear(second, act(run_linear(first, x)))


def _is_gelu(act: nn.Module) -> bool:
    """Whether an activation is the exact GELU, PyTorch's or transformers'."""
    if type(act).__name__ == "GELUActivation" and not hooked(act):
        return getattr(act, "act", None) is F.gelu
    return is_unmodified(act, nn.GELU) and act.approximate == "none"


def is_unmodified(layer: object, expected: type[nn.Module] = nn.Linear) -> bool:
    """Whether calling a module does what its class does, and nothing besides."""
    return _is_exactly(layer, expected) and not hooked(layer) and "forward" not in vars(layer)  # type: ignore[arg-type]


def hooked(module: nn.Module) -> bool:
    """Whether calling a module calls hooks, its own or global ones."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (not torch.compiler.is_compiling() and _globally_hooked())
    )


def _globally_hooked() -> bool:
    """Whether hooks are registered for all modules."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def can_run_in_chunks(module: nn.Module) -> bool:
    """Whether what is inside a module may run in parts: no hook is there that minds.

    A hook that does not mind has an attribute ``in_parts``.
    """
    if torch.compiler.is_compiling():  # where nothing runs in parts
        return True
    return not _globally_hooked() and not any(
        observed(child) for child in module.modules() if child is not module
    )


def observed(module: nn.Module) -> bool:
    """Whether a module has hooks that need all that it works on at once."""
    if not hooked(module):
        return False
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    )
    return not all(getattr(hook, "in_parts", False) for hook in hooks)


def _is_exactly(layer: object, expected: type[nn.Module]) -> bool:
    layer_type = type(layer)
    if expected is nn.Linear and layer_type.__module__ == "mmcv.cnn.bricks.wrappers":
        return layer_type.__name__ == "Linear"  # differs for empty inputs of PyTorch 1.5 alone
    return layer_type is expected

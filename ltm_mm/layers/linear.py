"""Runs plain linear layers on the fast path of ``ops``, whoever built them (ours)."""

from torch import Tensor, nn

from ..ops import linear, mlp, served


def run_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, with an untouched ``nn.Linear`` through :func:`ltm_mm.ops.linear`.

    Args:
        layer: a linear layer, or what took its place (quantised, with adapters, hooked):
            that is called as it is.
        x: ``(..., C_in)``.

    Returns:
        ``(..., C_out)``.
    """
    if untouched(layer):
        return linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    return layer(x)


def run_mlp(first: nn.Module, act: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    """``second(act(first(x)))``, through :func:`ltm_mm.ops.mlp` where that serves.

    Args:
        first, act, second: the layers.
        x: ``(..., C)``.

    Returns:
        ``(..., C)``.
    """
    plain = type(act) is nn.GELU and act.approximate == "none"
    if plain and untouched(first) and untouched(second) and served(x, first.weight):  # type: ignore[arg-type]
        layers = [(layer.weight, layer.bias) for layer in (first, second)]
        if all(bias is not None for _, bias in layers):
            return mlp(x, *layers)  # type: ignore[arg-type]
    return run_linear(second, act(run_linear(first, x)))


def untouched(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether calling a module does what its class does, and nothing besides."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return type(layer) is kind and not hooks and "forward" not in vars(layer)

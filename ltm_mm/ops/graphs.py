"""What has to be written otherwise in compiled and exported graphs (ours)."""

import torch
from torch import Tensor


def exporting() -> bool:
    """Whether ``torch.export`` (not strict) traces, and not ``torch.compile``.

    ``torch.compiler.is_exporting()`` is true under both.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jvp, ...) or forward derivatives run.

    Shapes must not depend on data there, and operators without a rule for it fail.
    """
    active = torch._C._are_functorch_transforms_active()
    return active or torch.autograd.forward_ad._current_level >= 0


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest values along the last dimension, and where they are; of equals the first one.

    Args:
        x: ``(..., N)``.

    Returns:
        Values and int64 indices ``(...)``.
    """
    return _opaque(x) if torch.compiler.is_dynamo_compiling() else _max(x)


def _max(x: Tensor) -> tuple[Tensor, Tensor]:
    values, places = x.max(-1)
    return values, places


def _shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1], dtype=torch.int64)


# PyTorch's compiler (2.11; pytorch/pytorch#178964) gives wrong places where it computes x on the
# way: as an operator of its own it gets x whole.
_opaque = torch.library.custom_op("ltm_mm::largest", _max, mutates_args=())
_opaque.register_fake(_shapes)

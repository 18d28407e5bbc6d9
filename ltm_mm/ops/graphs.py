"""What has to be written otherwise in compiled and exported graphs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting() -> bool:
    """Whether ``torch.export`` (not strict) or ``torch.jit.trace`` traces, not ``torch.compile``.

    ``torch.compiler.is_exporting()`` is true under that, too.
    """
    if torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jvp, ...) or forward derivatives run.

    Shapes must not depend on data there, and operators without a rule for it fail.
    """
    active = torch._C._are_functorch_transforms_active()
    return active or torch.autograd.forward_ad._current_level >= 0


def is_empty(x: Tensor) -> bool:
    """Whether a tensor holds nothing, as of no image: ``reshape`` cannot tell its sizes then."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and not x.numel()


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest values along the last dimension, and where they are; of equals the first one.

    Args:
        x: ``(..., N)``.

    Returns:
        Values and int64 indices ``(...)``.
    """
    return _opaque(x) if torch.compiler.is_dynamo_compiling() else _max(x)


def first_largest(x: Tensor, count: int) -> Tensor:
    """Where the largest values along the last dimension are; of equals the first ones.

    In graphs in operators that every exporter and runtime knows: a stable sort is none of them.

    Args:
        x: ``(..., N)``.
        count: how many, at most N.

    Returns:
        int64 indices ``(..., count)`` in no order.
    """
    if not exporting():
        return x.argsort(stable=True, dim=-1, descending=True).narrow(-1, 0, count)
    # One more in front, because runtimes take no top 0.
    last = F.pad(x, (1, 0), value=torch.inf).topk(count + 1).values.narrow(-1, count, 1)
    above, equal = x > last, x == last
    room = count - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.long().cumsum(-1) <= room))
    rank = chosen * torch.arange(x.shape[-1], 0, -1, device=x.device)  # no two chosen are equal
    rank = F.pad(rank.to(x.dtype), (1, 0), value=torch.inf)
    return rank.topk(count + 1).indices.narrow(-1, 1, count) - 1


def _max(x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = x.max(-1)
    return values, indices


def _shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1], dtype=torch.int64)


# PyTorch's compiler (2.11; pytorch/pytorch#178964) gives wrong indices where it computes x on the
# way: as an operator of its own it gets x whole.
_opaque = torch.library.custom_op("ltm_mm::largest", _max, mutates_args=())
_opaque.register_fake(_shapes)

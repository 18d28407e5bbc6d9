"""One switch for all kernels of this package.

With it off, or where oneDNN does not take the tensors, the same results come from PyTorch's
layers: the method knows nothing of this package's kernels.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

from ..ops import transformed

_on = os.environ.get("LTM_KERNELS", "1") != "0"


@contextmanager
def use_kernels(on: bool) -> Iterator[None]:
    """Switch all kernels on or off; ``LTM_KERNELS=0`` in the environment starts with them off.

    Args:
        on: whether they run where they can.
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def uses_onednn(x: Tensor, *others: Tensor | None) -> bool:
    """Whether oneDNN takes a layer: plain single-precision tensors on an x86 CPU.

    Quantised weights, tensor subclasses and sparse tensors are left to PyTorch, and so is all
    that traces, counts or transforms (``torch.export``, ``torch.func``, forward derivatives).

    Args:
        x: what goes in.
        others: all other tensors of the layer, weights and biases; None: it has none there.
    """
    return (
        _on
        and x.numel() > 0
        and all(map(_is_plain, (x, *others)))
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()  # counters and tracers know PyTorch's own
        and not transformed()
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


def _is_plain(x: Tensor | None) -> bool:
    """Whether a tensor is no subclass, dense, of single precision and on the CPU."""
    return x is None or (
        type(x) in (Tensor, Parameter)
        and x.layout is torch.strided
        and x.dtype is torch.float32
        and x.device.type == "cpu"
    )


@cache
def _has_onednn() -> bool:
    """Whether this build of PyTorch brings oneDNN's layers for this processor."""
    return (
        torch.backends.mkldnn.is_available()
        and platform.machine().lower() in ("x86_64", "amd64")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )

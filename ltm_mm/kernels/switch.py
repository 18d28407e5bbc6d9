"""One switch for all kernels of this package (ours).

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


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes a linear layer: plain single-precision tensors on an x86 CPU."""
    return (
        _on
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor  # no fake, functional or wrapped tensors, which tools trace with
        and x.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()  # counters and tracers know PyTorch's own
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


@cache
def _has_onednn() -> bool:
    """Whether this build of PyTorch brings oneDNN's linear layer for this processor."""
    return (
        torch.backends.mkldnn.is_available()
        and platform.machine().lower() in ("x86_64", "amd64")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )

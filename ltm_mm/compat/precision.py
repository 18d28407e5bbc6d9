"""The dtype in which the fallback computes."""

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least: torchvision's kernels lack 16-bit types in places."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

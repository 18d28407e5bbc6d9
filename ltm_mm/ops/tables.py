"""Tables that follow from sizes alone, made once for each device."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .graphs import exporting, transformed

Table = TypeVar("Table")


def cached_by_size(make: Callable[..., Table]) -> Callable[..., Table]:
    """Cache what a function makes of whole numbers and a device.

    Not where a graph is traced, or tensors are fake or transformed: those must not be kept.
    """
    made: dict[tuple, Table] = {}

    @wraps(make)
    def cached(*key: int | torch.device) -> Table:
        traced = torch.compiler.is_compiling() or exporting() or transformed()
        if traced or _get_current_dispatch_mode() is not None:
            return make(*key)
        if key not in made:
            with torch.inference_mode(False):
                made[key] = make(*key)
        return made[key]

    return cached

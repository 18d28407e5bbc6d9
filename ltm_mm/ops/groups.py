"""Sums over groups of tokens, and the way back from a group to its tokens (ours).

Letters: N tokens and P groups per set (a window, or a whole image), C channels.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .graphs import exporting, transformed


def sum_groups(x: Tensor, group_index: Tensor, count: int) -> Tensor:
    """Add up the tokens of every group.

    Args:
        x: ``(..., N, C)``.
        group_index: group of each token ``(..., N)`` int64 in ``0..count - 1``.
        count: groups per set (P).

    Returns:
        ``(..., P, C)``; zero for a group without tokens.
    """
    if by_index(x) or x.is_meta:  # work that is only counted is counted as on the CPU
        sums = x.new_zeros(group_index[..., 0].numel() * count, x.shape[-1])
        sums = sums.index_add(0, flat_index(group_index, count), x.reshape(-1, x.shape[-1]))
        return sums.view(*group_index.shape[:-1], count, x.shape[-1])
    member = group_index.unsqueeze(-2) == torch.arange(count, device=group_index.device).unsqueeze(
        -1
    )
    with full_precision(x):
        return (member.to(x.dtype).flatten(0, -3) @ x.flatten(0, -3)).view(
            *group_index.shape[:-1], count, x.shape[-1]
        )


def take_groups(x: Tensor, group_index: Tensor) -> Tensor:
    """Give every token what its group has.

    Args:
        x: ``(..., P, C)``.
        group_index: group of each token ``(..., N)`` int64.

    Returns:
        ``(..., N, C)``.
    """
    if by_index(x) or exporting():  # runtimes, too, gather rows in a fraction of the time
        rows = x.reshape(-1, x.shape[-1]).index_select(0, flat_index(group_index, x.shape[-2]))
        return rows.view(*group_index.shape, x.shape[-1])
    return x.gather(-2, group_index.unsqueeze(-1).expand(*group_index.shape, x.shape[-1]))


def flat_index(group_index: Tensor, count: int) -> Tensor:
    """Group indices ``(..., N)`` of sets of ``count`` groups as rows of all sets' ``(n * N,)``."""
    sets = group_index.reshape(-1, group_index.shape[-1])
    first = torch.arange(sets.shape[0], device=group_index.device).unsqueeze(-1) * count
    return (sets + first).flatten()


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast off: similarities and means lose too much in half precision."""
    device_type = x.device.type
    if device_type == "meta":  # nothing is computed there, and autocast does not know it
        return nullcontext()
    active = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if active else nullcontext()


def by_index(x: Tensor) -> bool:
    """Whether rows are moved one by one (fast on a CPU); otherwise by products and gathers."""
    traced = torch.compiler.is_compiling() or exporting() or transformed()
    return x.device.type == "cpu" and not traced

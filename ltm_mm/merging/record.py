"""Recording the merges of a forward pass, for losses, statistics and pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..ops import ShiftedWindows
from .groups import Groups


class Merge(Protocol):
    """One merge of a forward pass.

    Attributes:
        tokens: the input Z: a grid ``(B, H, W, C)``, or merged tokens ``(B, M', C)`` of the
            previous merge.
    """

    tokens: Tensor

    @property
    def merged(self) -> Tensor:
        """X~, all merged tokens of each image ``(B, M, C)``."""

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the original grid of tokens."""

    def share(self, amounts: Tensor) -> Tensor:
        """Amounts per token of the grid ``(B, H, W, K)``, summed per merged token ``(B, M, K)``."""

    def groups(self) -> Tensor:
        """The merged token that each token of the grid belongs to ``(B, H, W)`` int64."""


@dataclass
class WindowMerge:
    """A merge within the windows of a grid; see :class:`Merge`."""

    tokens: Tensor
    merged: Tensor
    mask: Groups
    windows: ShiftedWindows

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        return (self.tokens.shape[1], self.tokens.shape[2])

    def share(self, amounts: Tensor) -> Tensor:
        """``(B, H, W, K)`` -> ``(B, M, K)``."""
        return self.mask.share(self.windows.cut(amounts)).flatten(1, 2)

    def groups(self) -> Tensor:
        """``(B, H, W)`` int64."""
        group_index = self.mask.group_index  # (B, n, N)
        first = torch.arange(group_index.shape[1], device=group_index.device) * self.mask.count
        return self.windows.join((group_index + first[:, None]).unsqueeze(-1), *self.grid).squeeze(
            -1
        )


@dataclass
class ChainMerge:
    """A merge of all tokens of an image, or of those that an earlier merge left.

    Attributes:
        mask: groups of all tokens of each image ``(B, M', ...)``.
        size: height and width of the grid.
        earlier: the merge that produced the tokens; None: they are those of the grid.
    """

    tokens: Tensor
    merged: Tensor
    mask: Groups
    size: tuple[int, int]
    earlier: "ChainMerge | None" = None

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of tokens."""
        return self.size

    def share(self, amounts: Tensor) -> Tensor:
        """``(B, H, W, K)`` -> ``(B, M, K)``."""
        incoming = amounts.flatten(1, 2) if self.earlier is None else self.earlier.share(amounts)
        return self.mask.share(incoming)

    def groups(self) -> Tensor:
        """``(B, H, W)`` int64."""
        if self.earlier is None:
            return self.mask.group_index.unflatten(1, self.size)
        before = self.earlier.groups()
        return self.mask.group_index.gather(1, before.flatten(1)).view(before.shape)


_listeners: list[Callable[[nn.Module, Merge], None]] = []


def has_listeners() -> bool:
    """Whether there are listeners: then a merge runs on a whole grid at once and notifies them."""
    return not torch.compiler.is_compiling() and bool(_listeners)


def notify_merge(module: nn.Module, merge: Merge) -> None:
    """Notify the listeners of a merge.

    Args:
        module: the mask module that made the mask.
        merge: the merge.
    """
    for listener in _listeners:
        listener(module, merge)


@contextmanager
def record_merges(model: nn.Module) -> Iterator[list[tuple[str, Merge]]]:
    """Collect the merges of the forward passes inside the context.

    Args:
        model: any model.

    Yields:
        Path of the mask module in the model, and the merge, in order.
    """
    names = {module: name for name, module in model.named_modules()}
    recorded: list[tuple[str, Merge]] = []

    def listen(module: nn.Module, merge: Merge) -> None:
        if module in names:
            recorded.append((names[module], merge))

    _listeners.append(listen)
    try:
        yield recorded
    finally:
        _listeners.remove(listen)

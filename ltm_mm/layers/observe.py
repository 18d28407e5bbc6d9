"""Hooks inside a merged block see all tokens: what its modules get and give is unmerged for them.

A group's value stands for each of its tokens: ``U x``. What hooks return is merged again, so that
they can read, change and differentiate as in the plain block; ``G^T U`` changes nothing.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..kernels.layers import observed
from ..merging import Groups, MaskModule
from ..ops import ShiftedWindows, packed, sum_groups, take_groups

Undo = Callable[[Tensor], Tensor]


class Unmerger(Protocol):
    """How a module's merged tokens are unmerged to all tokens."""

    def __call__(self, path: str, x: Tensor) -> tuple[Tensor, Undo] | None:
        """All tokens, and what merges them again; None where x is not of merged tokens.

        Args:
            path: of the module in the block.
            x: what the module gets or gives.
        """


def _counting() -> bool:
    """Whether a tracer or counter of work reads along, which must see what is computed."""
    return torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


@contextmanager
def hooks_see_all_tokens(block: nn.Module, unmerger: Unmerger | None) -> Iterator[None]:
    """While it is open, hooks on the modules inside a block see all tokens.

    Args:
        block: its mask module is left out.
        unmerger: None: tokens cannot be unmerged; a warning says so where there are hooks.
    """
    with ExitStack() as stack:
        for path, module in list(block.named_modules()):
            if path and not path.startswith("merge") and observed(module) and not _counting():
                if unmerger is None or module._backward_hooks or module._backward_pre_hooks:
                    _warn(block, path)
                if unmerger is not None:
                    stack.enter_context(_unmerged_for_hooks(module, path, block, unmerger))
        yield


@contextmanager
def _unmerged_for_hooks(
    module: nn.Module, path: str, block: nn.Module, unmerger: Unmerger
) -> Iterator[None]:
    inner_forward, patched = module.forward, vars(module).get("forward")
    undo_args: list[Undo] = []
    undo_outs: list[Undo] = []

    def unmerge_values(value: object, undos: list[Undo]) -> object:
        if isinstance(value, tuple):
            return tuple(unmerge_values(v, undos) for v in value)
        if not isinstance(value, Tensor) or (unmerged := unmerger(path, value)) is None:
            if isinstance(value, Tensor) and _pairs_of_groups(block, value):
                _warn(block, path)
            undos.append(_same)
            return value
        undos.append(_exact_undo(value, *unmerged))
        return unmerged[0]

    def merge_again(value: object, undos: Iterator[Undo]) -> object:
        if isinstance(value, tuple):
            return tuple(merge_again(v, undos) for v in value)
        undo = next(undos)
        return undo(value) if isinstance(value, Tensor) else value

    def before(_: nn.Module, args: tuple) -> object:
        undo_args.clear()
        return unmerge_values(args, undo_args)

    def forward(*args: object, **kwargs: object) -> object:
        out = inner_forward(*merge_again(args, iter(undo_args)), **kwargs)  # type: ignore[misc]
        undo_outs.clear()
        return unmerge_values(out, undo_outs)

    def after(_: nn.Module, args: tuple, out: object) -> object:
        return merge_again(out, iter(undo_outs))

    handles = [
        module.register_forward_pre_hook(before, prepend=True),
        module.register_forward_hook(after),
    ]
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del module.forward
        if patched is not None:
            module.forward = patched


def _same(x: Tensor) -> Tensor:
    return x


def _exact_undo(merged: Tensor, full: Tensor, undo: Undo) -> Undo:
    """``undo``, but ``merged`` itself where no hook changed it: free of rounding."""
    version = None if full.is_inference() else full._version
    comparable = not full.requires_grad and version is not None

    def undo_or_keep(x: Tensor) -> Tensor:
        return merged if comparable and x is full and x._version == version else undo(x)

    return undo_or_keep


def _pairs_of_groups(block: nn.Module, x: Tensor) -> bool:
    """Whether it may be attention weights, a number for every pair of merged tokens."""
    merge = getattr(block, "merge", None)
    square = x.ndim == 4 and x.shape[-1] == x.shape[-2]
    return isinstance(merge, MaskModule) and square


def _warn(block: nn.Module, path: str) -> None:
    warnings.warn(
        f"a hook on {path} in a {type(block).__name__} that merges gets merged tokens, or their "
        "gradients: hook the block itself, whose input and output are of all tokens",
        stacklevel=2,
    )


class WindowUnmerger:
    """Unmerges tokens that were merged in windows, see :class:`Unmerger`.

    Args:
        mask: of the windows ``(B, n, ...)``.
        windows: how the grid was cut.
        size: H and W of the grid.
        layouts: how the plain block's modules get tokens, by path: 'grid' ``(B, H, W, C)`` or
            'rows' ``(B, H * W, C)``; under '' for all others but those inside the attention, which
            get windows ``(B * n, N, C)``.
    """

    def __init__(
        self,
        mask: Groups,
        windows: ShiftedWindows,
        size: tuple[int, int],
        layouts: Mapping[str, str],
    ) -> None:
        self.mask, self.windows, self.size, self.layouts = mask, windows, size, layouts

    def __call__(self, path: str, x: Tensor) -> tuple[Tensor, Undo] | None:
        """As :class:`Unmerger`."""
        sets, count = self.mask.group_index.shape[:2], self.mask.count
        if x.shape[:-1] == (*sets, count):
            layout = self.layouts.get(path, self.layouts[""])
        elif x.shape[:-1] == (sets.numel(), count):
            layout = self.layouts[path] if path and path in self.layouts else "windows"
        else:
            return None
        shape = x.shape
        full = take_groups(x.reshape(*sets, count, -1), self.mask.group_index)  # (B, n, N, C)
        if layout == "windows":
            return full.flatten(0, 1), lambda y: self._merge(y.unflatten(0, sets), None).view(shape)
        grid = self.windows.join(full, *self.size)

        def undo(y: Tensor) -> Tensor:
            windows = self.windows.cut(y.reshape(*grid.shape[:3], -1))
            return self._merge(windows, self.mask.mass).view(shape)

        return (grid if layout == "grid" else grid.flatten(1, 2)), undo

    def _merge(self, tokens: Tensor, mass: Tensor | None) -> Tensor:
        return mean_of_groups(tokens, self.mask, mass)


def mean_of_groups(tokens: Tensor, mask: Groups, mass: Tensor | None) -> Tensor:
    """Plain means of groups ``(..., P, C)`` of tokens ``(..., N, C)``.

    Args:
        mass: 1 for a token that counts, 0 for others ``(..., N)``; None: all count.
    """
    ones = torch.ones_like(tokens[..., :1]) if mass is None else mass.unsqueeze(-1).to(tokens.dtype)
    ones = packed(ones.expand(*tokens.shape[:-1], 1))
    total = sum_groups(ones, mask.group_index, mask.count).clamp(min=1e-6)
    return sum_groups(tokens * ones, mask.group_index, mask.count) / total

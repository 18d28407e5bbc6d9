"""Working in the windows of a grid, some rows of windows at a time (ours)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import ShiftedWindows
from ..ops.shifted import OnWindows
from .switch import uses_onednn

CHUNK = 2**19  # values of the windows that are worked on at a time (2 MB)


def map_windows(
    windows: ShiftedWindows,
    x: Tensor,
    work: OnWindows,
    before: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
    at_once: bool = False,
) -> Tensor:
    """As :meth:`ltm_mm.ops.ShiftedWindows.map`, without gradients in chunks.

    Args:
        windows: how the grid is cut.
        x, work, before: as there.
        chunk: values of the windows that are worked on at a time; None: ``CHUNK``.
        at_once: not in chunks.

    Returns:
        ``(B, H, W, C)``.
    """
    if at_once or torch.is_grad_enabled() or not uses_onednn(x):
        return windows.map(x, work, before)
    return _in_chunks(windows, x, work, before, chunk or CHUNK)


def _in_chunks(
    windows: ShiftedWindows,
    x: Tensor,
    work: OnWindows,
    before: Callable[[Tensor], Tensor] | None,
    chunk: int,
) -> Tensor:
    """Some rows of windows at a time, so that what is between stays in the cache."""
    b, height, width, c = x.shape
    w, out = windows.size, x.new_empty(x.shape)
    rows, cols = windows.counts(height, width)
    shift_index, mass = windows.shift_index(height, width, x.device), windows.mass(height, width, x)
    (down, right), (tall, wide) = windows.shifts(), (height, width)
    if windows.pad_first:
        tall, wide = rows * w, cols * w
    lefts = _pieces(0, cols, w, right, width, wide)
    step = max(chunk // (b * cols * w * w * c), 1)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        tops = _pieces(first, last, w, down, height, tall)
        shape = (b, last - first, cols, w, w, c)
        cut = x.new_empty(shape)
        if mass is not None:  # padding lies in the last two windows of a row or column
            cut[:, :, -2:].zero_()
            cut[:, max(rows - 2 - first, 0) :].zero_()
        for top in tops:
            lines = x[:, top.grid] if before is None else before(x[:, top.grid])
            for left in lefts:
                _place(cut, top, left).copy_(_split(lines[:, :, left.grid], top, left))
        own = slice(first * cols, last * cols)
        done = work(
            cut.view(b, -1, w * w, c),
            None if shift_index is None else shift_index[own],
            None if mass is None else mass[:, own],
        ).view(shape)
        for top in tops:
            for left in lefts:
                to = out[:, top.grid, left.grid]
                _split(to, top, left).copy_(_place(done, top, left))
    return out


@dataclass(frozen=True)
class _Piece:
    """Rows (or columns) that windows and their grid have in common: the same of some windows.

    Attributes:
        windows: which windows.
        inside: rows of each of them.
        grid: the rows of the grid.
    """

    windows: slice
    inside: slice
    grid: slice


def _pieces(first: int, last: int, window: int, shift: int, size: int, rolled: int) -> list[_Piece]:
    """Where the rows (or columns) of shifted windows lie in their grid.

    Args:
        first, last: the windows ``first .. last - 1``.
        window: rows per window.
        shift: rows that the windows are shifted by.
        size: rows of the grid without padding.
        rolled: rows of the grid that goes round: with its padding, or ``size``.

    Returns:
        As few pieces as there can be; rows that are in none are padding.
    """
    shift %= rolled
    start, stop = first * window + shift, min(last * window, rolled) + shift
    begin = max(start - rolled, 0)  # of those that have come round
    spans = [(start, min(stop, size), 0), (begin, min(stop - rolled, size), rolled - start + begin)]
    pieces = []
    for begin, end, at in spans:  # rows of the grid; where the first one lies in the windows
        while begin < end:
            k, inside = divmod(at, window)
            whole = (end - begin) // window if inside == 0 else 0
            count = whole * window or min(window - inside, end - begin)
            rows = slice(0, window) if whole else slice(inside, inside + count)
            pieces.append(_Piece(slice(k, k + max(whole, 1)), rows, slice(begin, begin + count)))
            begin, at = begin + count, at + count
    return pieces


def _place(windows: Tensor, top: _Piece, left: _Piece) -> Tensor:
    """A piece of windows ``(B, rows, cols, w, w, C)`` as ``(B, k, h, l, v, C)``."""
    part = windows[:, top.windows, left.windows, top.inside, left.inside]
    return part.transpose(2, 3)


def _split(grid: Tensor, top: _Piece, left: _Piece) -> Tensor:
    """The same piece of the grid ``(B, k * h, l * v, C)`` as ``(B, k, h, l, v, C)``, a view."""
    h, v = top.inside.stop - top.inside.start, left.inside.stop - left.inside.start
    return grid.unflatten(2, (-1, v)).unflatten(1, (-1, h))

"""The windows of a grid, some rows of windows at a time: what lies between stays in the cache.

Copying rectangles takes 8 ms where gathering and scattering tokens by index takes 11 (Swin-T's
first stage at 800 x 1216, two threads of an AMD EPYC)::

    grid, shifted by s      windows, one row of them
    +--+------+------+      +------+------+---+--+
    |d |  c   |  c   |      |  a   |  a   | a |b |    a: from within the grid
    +--+------+------+  ->  |      |      |   |  |    b, c, d: come round from its left and top
    |b |  a   |  a   |      +------+------+---+--+    edge; rows and columns of a window that
    |  |      |      |      |  c   |  c   | c |d |    come from one rectangle are a piece
    +--+------+------+      +------+------+---+--+
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import ShiftedWindows
from .switch import uses_onednn

CHUNK = 2**19  # values of the windows in a chunk (2 MB)


@dataclass(frozen=True)
class Chunk:
    """Some windows of a grid.

    Attributes:
        tokens: ``(B, n, N, C)``; padding is zero.
        shift_index: which shift mask each window takes ``(n,)``; None: not shifted.
        mass: 1 for a token, 0 for padding ``(1, n, N)``; None: no padding.
        tops: its rows in the grid, see :func:`_pieces`; empty: these are all windows.
    """

    tokens: Tensor
    shift_index: Tensor | None
    mass: Tensor | None
    tops: "tuple[_Piece, ...]" = ()


class WindowChunks:
    """Cuts a grid into chunks of windows and puts results in their places.

    Iterate over the chunks, call :meth:`put` for each, then read ``grid`` ``(B, H, W, C)``. With
    gradients, on other devices and in graphs there is one chunk of all windows.

    Args:
        windows: how the grid is cut.
        x: ``(B, H, W, C)``.
        before: works on every token by itself, before the padding; keeps channels.
        values: of the windows in a chunk, about; None: ``CHUNK``.
        at_once: one chunk in any case.
    """

    grid: Tensor

    def __init__(
        self,
        windows: ShiftedWindows,
        x: Tensor,
        before: Callable[[Tensor], Tensor] | None = None,
        values: int | None = None,
        at_once: bool = False,
    ) -> None:
        self.windows, self.x, self.before = windows, x, before
        self.at_once = at_once or torch.is_grad_enabled() or not uses_onednn(x)
        b, height, width, c = x.shape
        self.shift_index = windows.shift_index(height, width, x.device)
        self.mass = windows.mass(height, width, x)
        if self.at_once:
            return
        self.grid = x.new_empty(x.shape)
        self.rows, self.cols = windows.counts(height, width)
        self.step = max((values or CHUNK) // (b * self.cols * windows.size**2 * c), 1)
        down, right = windows.shifts()
        w, pad = windows.size, windows.pad_first
        tall, wide = (self.rows * w, self.cols * w) if pad else (height, width)
        self.down, self.tall = down, tall
        self.lefts = _pieces(0, self.cols, w, right, width, wide)

    def __iter__(self) -> Iterator[Chunk]:
        if self.at_once:
            x = self.x if self.before is None else self.before(self.x)
            yield Chunk(self.windows.cut(x), self.shift_index, self.mass)
            return
        for first in range(0, self.rows, self.step):
            yield self._cut(first, min(first + self.step, self.rows))

    def put(self, chunk: Chunk, tokens: Tensor) -> None:
        """Put results ``(B, n, N, C)`` where the chunk's tokens come from."""
        if self.at_once:
            self.grid = self.windows.join(tokens, *self.x.shape[1:3])
            return
        windows = self._unflat(tokens)
        for top in chunk.tops:
            for left in self.lefts:
                to = self.grid[:, top.grid, left.grid]
                _split(to, top, left).copy_(_place(windows, top, left))

    def _cut(self, first: int, last: int) -> Chunk:
        """The rows of windows ``first .. last - 1``."""
        x, w = self.x, self.windows.size
        cut = x.new_empty(x.shape[0], last - first, self.cols, w, w, x.shape[3])
        if self.mass is not None:  # padding lies in the last two windows of a row or column
            cut[:, :, -2:].zero_()
            cut[:, max(self.rows - 2 - first, 0) :].zero_()
        tops = tuple(_pieces(first, last, w, self.down, x.shape[1], self.tall))
        for top in tops:
            lines = x[:, top.grid] if self.before is None else self.before(x[:, top.grid])
            for left in self.lefts:
                _place(cut, top, left).copy_(_split(lines[:, :, left.grid], top, left))
        in_chunk = slice(first * self.cols, last * self.cols)
        return Chunk(
            cut.view(x.shape[0], -1, w * w, x.shape[3]),
            None if self.shift_index is None else self.shift_index[in_chunk],
            None if self.mass is None else self.mass[:, in_chunk],
            tops,
        )

    def _unflat(self, tokens: Tensor) -> Tensor:
        """Windows ``(B, n, N, C)`` as ``(B, rows, cols, w, w, C)``."""
        w = self.windows.size
        return tokens.reshape(tokens.shape[0], -1, self.cols, w, w, tokens.shape[-1])


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

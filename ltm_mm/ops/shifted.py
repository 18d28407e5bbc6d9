"""Working in the (shifted) windows of a grid, whatever its size.

Source: window attention and the cyclic shift are Swin's (Liu et al., ICCV 2021, section 3.2);
working on some rows of windows at a time is ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear import served
from .shift import window_kinds
from .windows import BAND, crop, from_windows, pad_to_windows, real_tokens, to_windows

# Windows (B, n, N, C), their kinds (n,), and the mass of their tokens (1, n, N) -> (B, n, N, C).
OnWindows = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class ShiftedWindows:
    """How a grid is cut: windows of ``size x size`` tokens, after a cyclic shift.

    Attributes:
        size: tokens per window side (w).
        shift: tokens that the grid is rolled up and left by, ``0 <= shift < size``.
        axes: whether rows, and whether columns are shifted at all.
        pad_first: whether a grid is padded before it is rolled (mmdet's order) or after (timm's).
    """

    size: int
    shift: int = 0
    axes: tuple[bool, bool] = (True, True)
    pad_first: bool = True

    def map(
        self,
        x: Tensor,
        work: OnWindows,
        before: Callable[[Tensor], Tensor] | None = None,
        band: int | None = BAND,
    ) -> Tensor:
        """Work within every window of a grid.

        Args:
            x: ``(B, H, W, C)`` of any size; windows that reach beyond are padded with zeros.
            work: on windows; kinds are None without a shift, mass where nothing is padded.
            before: works on every token by itself, before the padding.
            band: values of the windows that are worked on at a time, where that is faster; None:
                all of them.

        Returns:
            ``(B, H, W, C)``.
        """
        if band is None or torch.is_grad_enabled() or not served(x, x):
            return self._at_once(x if before is None else before(x), work)
        return self._in_bands(x, work, before, band)

    def cut(self, x: Tensor) -> Tensor:
        """Windows ``(B, n, N, C)`` of a grid ``(B, H, W, C)``."""
        x = pad_to_windows(x, self.size) if self.pad_first else x
        if self.shift:
            x = x.roll([-shift for shift in self._shifts()], (1, 2))
        return to_windows(x if self.pad_first else pad_to_windows(x, self.size), self.size)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The grid ``(B, height, width, C)`` of its windows."""
        rows, cols = self.counts(height, width)
        x = from_windows(windows, self.size, rows * self.size, cols * self.size)
        x = x if self.pad_first else crop(x, height, width)
        if self.shift:
            x = x.roll(self._shifts(), (1, 2))
        return crop(x, height, width) if self.pad_first else x

    def counts(self, height: int, width: int) -> tuple[int, int]:
        """Windows per column and per row of a grid."""
        return (height + self.size - 1) // self.size, (width + self.size - 1) // self.size

    def kinds(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """Which shift mask each window takes ``(n,)``; None without a shift."""
        if not self.shift:
            return None
        kinds = window_kinds(*self.counts(height, width), device)
        by_rows, by_cols = self.axes  # an axis that is not shifted has no last window
        return kinds if by_rows and by_cols else kinds & (2 * by_rows + by_cols)

    def mass(self, height: int, width: int, like: Tensor) -> Tensor | None:
        """1 for a token, 0 for padding ``(1, n, N)``; None where nothing is padded."""
        compiling = torch.compiler.is_compiling()  # no branch on a symbolic size
        if not compiling and height % self.size == 0 and width % self.size == 0:
            return None
        if not self.shift:
            return real_tokens(height, width, self.size, like=like)
        return self.cut(like.new_ones(1, height, width, 1)).squeeze(-1)

    def _shifts(self) -> list[int]:
        return [self.shift * axis for axis in self.axes]

    def _at_once(self, x: Tensor, work: OnWindows) -> Tensor:
        _, height, width, _ = x.shape
        kinds, mass = self.kinds(height, width, x.device), self.mass(height, width, x)
        return self.join(work(self.cut(x), kinds, mass), height, width)

    def _in_bands(
        self, x: Tensor, work: OnWindows, before: Callable[[Tensor], Tensor] | None, band: int
    ) -> Tensor:
        """Some rows of windows at a time, so that what is between stays in the cache."""
        b, height, width, c = x.shape
        w, out = self.size, x.new_empty(x.shape)
        rows, cols = self.counts(height, width)
        kinds, mass = self.kinds(height, width, x.device), self.mass(height, width, x)
        (down, right), (tall, wide) = self._shifts(), (height, width)
        if self.pad_first:
            tall, wide = rows * w, cols * w
        lefts = _pieces(0, cols, w, right, width, wide)
        step = max(band // (b * cols * w * w * c), 1)
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
            windows = work(
                cut.view(b, -1, w * w, c),
                None if kinds is None else kinds[own],
                None if mass is None else mass[:, own],
            ).view(shape)
            for top in tops:
                for left in lefts:
                    to = out[:, top.grid, left.grid]
                    _split(to, top, left).copy_(_place(windows, top, left))
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

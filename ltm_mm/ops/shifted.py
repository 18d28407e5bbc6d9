"""Working in the (shifted) windows of a grid, whatever its size.

Source: window attention and the cyclic shift are Swin's (Liu et al., ICCV 2021, section 3.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .graphs import exporting
from .shift import shift_indices
from .windows import crop, from_windows, pad_to_windows, real_tokens, to_windows


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

    def cut(self, x: Tensor) -> Tensor:
        """Windows ``(B, n, N, C)`` of a grid ``(B, H, W, C)``."""
        return self._cut_by_rows(x) if exporting() else self._cut(x)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The grid ``(B, height, width, C)`` of its windows."""
        if not exporting():
            return self._join(windows, height, width)
        b, n, count, c = windows.shape
        token_ids = torch.arange(n * count, device=windows.device).view(1, n, count, 1)
        token_ids = self._join(token_ids, height, width).flatten()
        return windows.flatten(1, 2).index_select(1, token_ids).view(b, height, width, c)

    def _cut_by_rows(self, x: Tensor) -> Tensor:
        """For runtimes, which pad, roll and transpose in five copies, and gather rows in one."""
        b, height, width, c = x.shape
        token_ids = torch.arange(height * width, device=x.device) + 1
        token_ids = self._cut(token_ids.view(1, height, width, 1))  # (1, n, N, 1), 0 of padding
        n, flat = token_ids.shape[1], token_ids.flatten()
        rows = x.flatten(1, 2).index_select(1, (flat - 1).clamp(min=0))
        return (rows * (flat.unsqueeze(-1) > 0).to(x.dtype)).view(b, n, -1, c)

    def _cut(self, x: Tensor) -> Tensor:
        x = pad_to_windows(x, self.size) if self.pad_first else x
        if self.shift:
            x = x.roll([-shift for shift in self.shifts()], (1, 2))
        return to_windows(x if self.pad_first else pad_to_windows(x, self.size), self.size)

    def _join(self, windows: Tensor, height: int, width: int) -> Tensor:
        rows, cols = self.counts(height, width)
        x = from_windows(windows, self.size, rows * self.size, cols * self.size)
        x = x if self.pad_first else crop(x, height, width)
        if self.shift:
            x = x.roll(self.shifts(), (1, 2))
        return crop(x, height, width) if self.pad_first else x

    def counts(self, height: int, width: int) -> tuple[int, int]:
        """Windows per column and per row of a grid."""
        return (height + self.size - 1) // self.size, (width + self.size - 1) // self.size

    def shift_index(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """Which shift mask each window takes ``(n,)``; None without a shift."""
        if not self.shift:
            return None
        return shift_indices(*self.counts(height, width), device, self.axes)

    def mass(self, height: int, width: int, like: Tensor) -> Tensor | None:
        """1 for a token, 0 for padding ``(1, n, N)``; None where nothing is padded."""
        compiling = torch.compiler.is_compiling()  # no branch on a symbolic size
        if not compiling and height % self.size == 0 and width % self.size == 0:
            return None
        if not self.shift:
            return real_tokens(height, width, self.size, like=like)
        return self.cut(like.new_ones(1, height, width, 1)).squeeze(-1)

    def shifts(self) -> list[int]:
        """Tokens that the grid is rolled up, and left."""
        return [self.shift * axis for axis in self.axes]

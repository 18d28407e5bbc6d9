"""Cutting a token grid into windows and putting it together again.

Letters used throughout ``ops`` and ``layers``:
B images, H x W grid, C channels, w tokens per window side, n windows per image,
N = w * w tokens per window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Pad a grid with zeros at its bottom and right until windows fit.

    Args:
        x: token grid ``(B, H, W, C)``.
        window: tokens per window side, >= 1.

    Returns:
        ``(B, H', W', C)`` with H' and W' the next multiples of ``window``; ``x``
        itself where nothing is missing.
    """
    pad_bottom = (x.shape[1] + window - 1) // window * window - x.shape[1]
    pad_right = (x.shape[2] + window - 1) // window * window - x.shape[2]
    # Compiled and exported, both are symbolic numbers: no branch on them there.
    if not torch.compiler.is_compiling() and pad_bottom == 0 and pad_right == 0:
        return x
    return F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a grid into windows, row by row.

    Args:
        x: token grid ``(B, H, W, C)``, H and W multiples of ``window``.
        window: tokens per window side.

    Returns:
        ``(B, n, N, C)`` with ``n = H/window * W/window`` and ``N = window**2``.
    """
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return packed(x).view(b, -1, window * window, c)  # (B, n, N, C)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`to_windows`.

    Args:
        x: windows ``(B, n, N, C)``.
        window: tokens per window side.
        height, width: size of the grid in tokens, multiples of ``window``.

    Returns:
        Token grid ``(B, height, width, C)``.
    """
    b, _, _, c = x.shape
    x = x.reshape(b, height // window, width // window, window, window, c).transpose(2, 3)
    return packed(x).view(b, height, width, c)  # (B, H, W, C)


def real_tokens(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """Mark which tokens of the padded windows are real.

    Args:
        height, width: size of the grid before padding, in tokens.
        window: tokens per window side.
        like: tensor that gives device and dtype.

    Returns:
        ``(1, n, N)``, 1 for a real token and 0 for padding. Every window holds at
        least one real token, because the padding is shorter than a window.
    """
    grid = torch.ones(1, height, width, 1, device=like.device, dtype=like.dtype)
    return to_windows(pad_to_windows(grid, window), window).squeeze(-1)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """First rows and columns of a grid: ``(B, height, width, C)`` of ``(B, H, W, C)``."""
    x = x.narrow(1, 0, height).narrow(2, 0, width)
    # Packed or not would depend on the size, and with it the graph.
    return packed(x) if torch.compiler.is_compiling() else x


def packed(x: Tensor) -> Tensor:
    """A packed copy; ``reshape`` would ask whether one is needed, and a graph fix the answer."""
    return x.clone(memory_format=torch.contiguous_format)

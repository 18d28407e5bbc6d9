"""Shift masks and regions against the reference's way: label regions, compare labels."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ltm_mm.ops import shift_indices, shift_masks, to_windows, window_regions

grids = pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (2, 1), (3, 4)])
windows = pytest.mark.parametrize(("window", "shift"), [(7, 3), (5, 2), (4, 2), (2, 1)])


def labels(rows: int, cols: int, window: int, shift: int) -> Tensor:
    """Which part of the grid each token of each window comes from ``(n, N)``."""

    def regions(count):
        position = torch.arange(count * window)
        size = count * window
        return (position >= size - window).int() + (position >= size - shift).int()

    label = regions(rows)[:, None] * 3 + regions(cols)[None, :]
    return to_windows(label[None, :, :, None], window)[0, :, :, 0]


@grids
@windows
def test_four_masks_give_every_grids_mask(rows, cols, window, shift):
    regions = labels(rows, cols, window, shift)
    expected = (regions[:, :, None] != regions[:, None, :]).float() * -100
    masks = shift_masks(window, shift)[shift_indices(rows, cols, torch.device("cpu"))]
    assert_close(masks, expected, rtol=0, atol=0)


@grids
@windows
def test_regions_tell_the_same_parts_apart(rows, cols, window, shift):
    expected = labels(rows, cols, window, shift)
    regions = window_regions(window, shift)[shift_indices(rows, cols, torch.device("cpu"))]
    assert_close(
        regions[:, :, None] == regions[:, None, :],
        expected[:, :, None] == expected[:, None, :],
        rtol=0,
        atol=0,
    )

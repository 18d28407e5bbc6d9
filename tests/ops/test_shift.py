"""Shift masks against the reference's way: label regions, compare labels."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import shift_masks, to_windows, window_kinds


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (2, 1), (3, 4)])
@pytest.mark.parametrize(("window", "shift"), [(7, 3), (5, 2), (4, 2), (2, 1)])
def test_four_masks_give_every_grids_mask(rows, cols, window, shift):
    def regions(count):
        position = torch.arange(count * window)
        size = count * window
        return (position >= size - window).int() + (position >= size - shift).int()

    label = regions(rows)[:, None] * 3 + regions(cols)[None, :]
    windows = to_windows(label[None, :, :, None], window)[0, :, :, 0]  # (n, N)
    expected = (windows[:, :, None] != windows[:, None, :]).float() * -100
    masks = shift_masks(window, shift)[window_kinds(rows, cols, torch.device("cpu"))]
    assert_close(masks, expected, rtol=0, atol=0)

"""Windows: order of tokens, padding, and the way back."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import from_windows, pad_to_windows, real_tokens, to_windows


def test_windows_follow_the_grid_row_by_row():
    grid = torch.arange(2 * 4 * 6 * 3.0).view(2, 4, 6, 3)
    windows = to_windows(grid, 2)
    expected = torch.stack(
        [
            torch.stack(
                [
                    grid[b, r : r + 2, c : c + 2].reshape(4, 3)
                    for r in range(0, 4, 2)
                    for c in range(0, 6, 2)
                ]
            )
            for b in range(2)
        ]
    )
    assert_close(windows, expected, rtol=0, atol=0)
    assert_close(from_windows(windows, 2, 4, 6), grid, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 13), (1, 15)])
def test_padding_is_zero_at_the_bottom_right_and_marked(height, width):
    grid = torch.rand(1, height, width, 2) + 1
    padded = pad_to_windows(grid, 7)
    assert padded.shape[1] % 7 == 0
    assert padded.shape[2] % 7 == 0
    assert_close(padded[:, :height, :width], grid, rtol=0, atol=0)
    marked = from_windows(
        real_tokens(height, width, 7, like=grid).unsqueeze(-1), 7, *padded.shape[1:3]
    )
    assert_close((padded[..., :1] != 0).float(), marked, rtol=0, atol=0)
    assert (real_tokens(height, width, 7, like=grid).sum(-1) >= 1).all()

"""Position bias: which row of the table a pair of tokens reads."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import pair_offsets, relative_position_index

WINDOWS = [1, 2, 5, 7]


@pytest.mark.parametrize("window", WINDOWS)
def test_index_names_the_offset(window):
    index = relative_position_index(window)
    for query in range(window**2):
        for key in range(window**2):
            d_row = query // window - key // window + window - 1
            d_col = query % window - key % window + window - 1
            assert index[query, key] == d_row * (2 * window - 1) + d_col


@pytest.mark.parametrize("window", WINDOWS)
def test_differences_of_offsets_tell_the_row(window):
    offsets, rows = pair_offsets(window), (2 * window - 1) ** 2
    assert offsets.shape == (window**2,)
    index = offsets[:, None] - offsets[None, :] + rows // 2
    assert_close(index, relative_position_index(window), rtol=0, atol=0)
    assert_close(index.unique(), torch.arange(rows), rtol=0, atol=0)  # every row is read

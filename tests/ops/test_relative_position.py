"""Position bias on tokens and on slots."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import offset_interpolation, relative_position_index


@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_index_names_the_offset(window):
    index = relative_position_index(window)
    for query in range(window**2):
        for key in range(window**2):
            d_row = query // window - key // window + window - 1
            d_col = query % window - key % window + window - 1
            assert index[query, key] == d_row * (2 * window - 1) + d_col


@pytest.mark.parametrize(("window", "slots"), [(7, 5), (7, 4), (7, 1), (12, 9)])
def test_interpolation_is_exact_on_a_linear_table(window, slots):
    """A table that is linear in the offset is read exactly at the slots' offsets."""
    entries = torch.arange(1 - window, window, dtype=torch.float64)
    table = (2 * entries[:, None] - 3 * entries[None, :] + 1).flatten()
    offsets = torch.arange(1 - slots, slots, dtype=torch.float64) * window / slots
    expected = (2 * offsets[:, None] - 3 * offsets[None, :] + 1).flatten()
    read = offset_interpolation(window, slots).double() @ table
    assert_close(read, expected, rtol=1e-5, atol=1e-5)


def test_interpolation_without_a_merge_is_the_identity():
    assert_close(offset_interpolation(7, 7), torch.eye(169), rtol=0, atol=0)

"""Operators that graphs hold in place of PyTorch's own."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import first_largest


@pytest.mark.parametrize("kind", ["ties", "all equal", "nan", "distinct"])
@pytest.mark.parametrize(("length", "count"), [(1, 1), (25, 17), (25, 25), (24, 1), (9, 0)])
def test_the_first_of_the_largest_in_graphs_are_those_of_a_stable_sort(
    kind, length, count, monkeypatch
):
    x = torch.randn(50, length)
    x = {"ties": x.round(), "all equal": 0 * x, "distinct": x}.get(kind, x.round())
    if kind == "nan":
        x[::2] = torch.nan
    expected = first_largest(x, count)
    monkeypatch.setattr("ltm_mm.ops.graphs.exporting", lambda: True)
    indices = first_largest(x, count)
    assert indices.shape == expected.shape == (50, count)
    if kind == "nan":  # any, but no one twice
        assert all(row.unique().numel() == count for row in indices)
    else:
        assert_close(indices.sort().values, expected.sort().values, rtol=0, atol=0)

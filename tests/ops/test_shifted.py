"""Shifted windows: cut and put together."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import ShiftedWindows
from ltm_mm.ops import shifted as shifted_ops

SIZES = [(23, 31), (14, 21), (3, 2), (1, 40), (29, 7), (1, 1), (7, 7)]
sizes = pytest.mark.parametrize("size", SIZES)
WINDOWS = [ShiftedWindows(7, 0), ShiftedWindows(7, 3), ShiftedWindows(4, 2), ShiftedWindows(5, 4)]
WINDOWS += [ShiftedWindows(1, 0), ShiftedWindows(7, 3, (True, False))]
WINDOWS += [ShiftedWindows(7, 3, pad_first=False), ShiftedWindows(4, 2, (False, True), False)]
shifts = pytest.mark.parametrize("cut", WINDOWS, ids=str)


@pytest.fixture(params=[False, True], ids=["rolled", "by rows"])
def _each_way(request, monkeypatch):
    """As PyTorch does it, and as in exported graphs."""
    monkeypatch.setattr(shifted_ops, "exporting", lambda: request.param)


@pytest.mark.usefixtures("_each_way")
@sizes
@shifts
def test_windows_are_those_of_the_rolled_and_padded_grid(cut, size):
    (height, width), window = size, cut.size
    x = torch.randn(2, height, width, 3)
    rows, cols = cut.counts(height, width)
    windows = cut.cut(x)
    assert windows.shape == (2, rows * cols, window**2, 3)
    for r in range(rows):
        for c in range(cols):
            for i in range(window):
                for k in range(window):
                    y, z = r * window + i, c * window + k
                    real = y < height and z < width  # where the grid is padded after the roll
                    y, z = y + cut.shift * cut.axes[0], z + cut.shift * cut.axes[1]
                    if cut.pad_first:
                        y, z = y % (rows * window), z % (cols * window)
                        real = y < height and z < width
                    expected = x[:, y % height, z % width] if real else torch.zeros(2, 3)
                    found = windows[:, r * cols + c, i * window + k]
                    assert_close(found, expected, rtol=0, atol=0)
    assert_close(cut.join(windows, height, width), x, rtol=0, atol=0)


@sizes
@shifts
def test_mass_marks_what_is_no_padding(cut, size):
    ones = torch.ones(1, *size, 1)
    mass = cut.mass(*size, ones)
    if mass is None:
        assert size[0] % cut.size == size[1] % cut.size == 0
    else:
        assert_close(mass, cut.cut(ones).squeeze(-1), rtol=0, atol=0)
        assert mass.min() == 0


def test_kinds_are_those_of_last_rows_and_columns():
    cut, cpu = ShiftedWindows(7, 3), torch.device("cpu")
    assert cut.shift_index(9, 16, cpu).tolist() == [0, 0, 1, 2, 2, 3]
    assert ShiftedWindows(7, 3, (True, False)).shift_index(9, 16, cpu).tolist() == [
        0,
        0,
        0,
        2,
        2,
        2,
    ]
    assert ShiftedWindows(7, 3, (False, True)).shift_index(9, 16, cpu).tolist() == [
        0,
        0,
        1,
        0,
        0,
        1,
    ]
    assert ShiftedWindows(7).shift_index(9, 16, cpu) is None

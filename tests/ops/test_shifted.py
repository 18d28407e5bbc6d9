"""Shifted windows: cut and put together, all at once and in bands."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.kernels import map_windows, uses_onednn
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


@sizes
@shifts
def test_in_chunks_as_all_at_once(cut, size):
    """Work that tells windows, their shift masks and their padding apart."""
    x = torch.randn(2, *size, 3)
    if not uses_onednn(x, x):
        pytest.skip("no oneDNN here: there are no chunks")
    calls = []

    def work(windows, shift_index, mass):
        calls.append(windows.shape[1])
        out = windows + windows.mean(2, keepdim=True)
        out = out if shift_index is None else out * (1 + shift_index.view(1, -1, 1, 1))
        return out if mass is None else out + mass.sum(-1)[..., None, None]

    expected = cut.map(x, work, torch.exp)
    rows, cols = cut.counts(*size)
    assert calls == [rows * cols]
    for step in (1, 2, rows):
        calls.clear()
        chunk = step * 2 * cols * cut.size**2 * 3
        with torch.no_grad():
            assert_close(
                map_windows(cut, x, work, torch.exp, chunk), expected, rtol=1e-6, atol=1e-6
            )
        assert calls == [cols * min(step, rows - first) for first in range(0, rows, step)]


def test_padding_stays_zero_after_what_comes_before():
    cut, x = ShiftedWindows(7, 3), torch.randn(1, 9, 16, 3)
    mass, seen = cut.mass(9, 16, x), []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            map_windows(cut, x, lambda windows, *_: seen.append(windows) or windows, torch.exp)
    for windows in seen:
        assert_close(windows == 0, (mass == 0).unsqueeze(-1).expand_as(windows), rtol=0, atol=0)


def test_a_gradient_goes_through_windows_once():
    x = torch.randn(2, 9, 16, 3, requires_grad=True)
    weight = torch.randn(2, 9, 16, 3)
    (ShiftedWindows(7, 3).map(x, lambda windows, *_: 2 * windows) * weight).sum().backward()
    assert_close(x.grad, 2 * weight)


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

"""Windows of a grid in chunks: the same as all at once."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.kernels import WindowChunks, uses_onednn
from ltm_mm.ops import ShiftedWindows
from tests.ops.test_shifted import shifts, sizes


def work(chunk):
    """Tells windows, their shift masks and their padding apart."""
    windows, shift_index, mass = chunk.tokens, chunk.shift_index, chunk.mass
    out = windows + windows.mean(2, keepdim=True)
    out = out if shift_index is None else out * (1 + shift_index.view(1, -1, 1, 1))
    return out if mass is None else out + mass.sum(-1)[..., None, None]


def run(chunks, work):
    """The grid that comes of working on every chunk, and how many windows each had."""
    counts = []
    for chunk in chunks:
        counts.append(chunk.tokens.shape[1])
        chunks.put(chunk, work(chunk))
    return chunks.grid, counts


@sizes
@shifts
def test_in_chunks_as_all_at_once(cut, size):
    x = torch.randn(2, *size, 3)
    if not uses_onednn(x, x):
        pytest.skip("no oneDNN here: there are no chunks")
    expected, counts = run(WindowChunks(cut, x, torch.exp), work)
    rows, cols = cut.counts(*size)
    assert counts == [rows * cols]
    for step in (1, 2, rows):
        values = step * 2 * cols * cut.size**2 * 3
        with torch.no_grad():
            found, counts = run(WindowChunks(cut, x, torch.exp, values), work)
        assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert counts == [cols * min(step, rows - first) for first in range(0, rows, step)]


@sizes
@shifts
def test_what_is_put_back_unchanged_is_the_grid(cut, size):
    x = torch.randn(2, *size, 3)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found, _ = run(WindowChunks(cut, x), lambda chunk: chunk.tokens)
        assert torch.equal(found, x)


def test_padding_stays_zero_after_what_comes_before():
    cut, x = ShiftedWindows(7, 3), torch.randn(1, 9, 16, 3)
    mass = cut.mass(9, 16, x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            tokens = torch.cat([chunk.tokens for chunk in WindowChunks(cut, x, torch.exp)], 1)
        assert_close(tokens == 0, (mass == 0).unsqueeze(-1).expand_as(tokens), rtol=0, atol=0)


def test_a_gradient_goes_through_windows_once():
    x = torch.randn(2, 9, 16, 3, requires_grad=True)
    weight = torch.randn(2, 9, 16, 3)
    found, _ = run(WindowChunks(ShiftedWindows(7, 3), x), lambda chunk: 2 * chunk.tokens)
    (found * weight).sum().backward()
    assert_close(x.grad, 2 * weight)

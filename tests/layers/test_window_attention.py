"""Window attention of Swin on tokens and on slots."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.layers import ShiftedWindowAttention


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("slots", [7, 5])
def test_windows_in_chunks_are_windows_at_once(slots, shifted, monkeypatch):
    module = ShiftedWindowAttention(16, 2, 7, slots, shifted).eval()
    x = torch.randn(2, 23, 31, 16)
    expected = module(x)  # with gradients: at once
    with torch.no_grad():
        assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
        chunks = importlib.import_module("ltm_mm.layers.window_attention")
        for size in (1, 7000):  # a window at a time; some, across the images of the batch
            monkeypatch.setattr(chunks, "CHUNK", size)
            assert_close(module(x), expected, rtol=1e-5, atol=1e-6)

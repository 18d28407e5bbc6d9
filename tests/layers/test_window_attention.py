"""Window attention of Swin on tokens and on slots."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.layers import ShiftedWindowAttention


@pytest.mark.parametrize("size", [(23, 31), (14, 21), (3, 2), (1, 40), (29, 7)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("slots", [7, 5])
def test_windows_in_bands_are_windows_at_once(slots, shifted, size, monkeypatch):
    module = ShiftedWindowAttention(16, 2, 7, slots, shifted).eval()
    x, norm = torch.randn(2, *size, 16), torch.nn.LayerNorm(16)
    torch.nn.init.ones_(norm.bias)  # padding is zero after it all the same
    expected = module(x, norm)  # with gradients: at once
    with torch.no_grad():
        assert_close(module(x, norm), expected, rtol=1e-5, atol=1e-6)
        for values in (1, 20000):  # a row of windows at a time; some
            layer = importlib.import_module("ltm_mm.layers.window_attention")
            monkeypatch.setattr(layer, "BAND", values)
            assert_close(module(x, norm), expected, rtol=1e-5, atol=1e-6)

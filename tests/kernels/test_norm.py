"""Layer norms into maps: the same as apart."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.kernels import norm_to_map, use_kernels


@pytest.mark.parametrize("size", [(1, 1), (33, 40), (3, 700)])
@pytest.mark.parametrize("on", [True, False])
def test_maps_are_the_norms(on, size):
    norm, x = nn.LayerNorm(12), torch.randn(2, *size, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = norm(x).permute(0, 3, 1, 2)
    with use_kernels(on), torch.no_grad():
        normed = norm_to_map(norm, x)
    assert_close(normed, expected, rtol=1e-6, atol=1e-6)
    assert normed.is_contiguous()


def test_a_hooked_norm_is_called_once_with_all_tokens():
    norm, seen = nn.LayerNorm(4), []
    norm.register_forward_hook(lambda _m, _a, out: seen.append(out.shape))
    with torch.no_grad():
        norm_to_map(norm, torch.randn(1, 40, 50, 4))
    assert seen == [(1, 40, 50, 4)]

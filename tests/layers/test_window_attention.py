"""Window attention of Swin on tokens and on merged tokens."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.layers import WindowAttention, WindowContext
from ltm_mm.layers.window_attention import group_bias, position_bias, window_tables
from ltm_mm.merging import Groups, Match
from ltm_mm.ops import ShiftedWindows
from tests.models.contract import randomise

SIZES = [(23, 31), (14, 21), (3, 2), (1, 40), (29, 7)]


def windows_of(size: tuple[int, int], shift: int) -> tuple:
    """Windows of a random grid, their shift masks, and their mass."""
    cut, x = ShiftedWindows(7, shift), torch.randn(2, *size, 16)
    return cut.cut(x), cut.shift_index(*size, x.device), cut.mass(*size, x)


def attend(module, shift, x, shift_index, mask=None):
    """Attention within windows ``(B, n, N, C)``."""
    context = WindowContext(ShiftedWindows(7, shift), x.shape[:2], shift_index, mask)
    return module(x.flatten(0, 1), context).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 3])
def test_tokens_that_are_alone_attend_as_tokens(shift, size):
    module = randomise(WindowAttention(16, 2, 7)).eval()
    x, shift_index, mass = windows_of(size, shift)
    alone = torch.arange(49).expand(x.shape[:3])
    mask = Groups(alone, alone, torch.ones(x.shape[:3]), mass)
    found = attend(module, shift, x, shift_index, mask)
    assert_close(found, attend(module, shift, x, shift_index), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 3])
def test_bias_of_groups_is_that_of_their_roots_and_sizes(shift):
    module = randomise(WindowAttention(16, 2, 7)).eval()
    x, shift_index, mass = windows_of((17, 23), shift)
    mask = Match(7, 20, shift)(x, mass, shift_index)
    table, tables = module.relative_position_bias_table, window_tables(7, shift, x.device)
    bias = group_bias(table, tables, mask, shift_index).unflatten(0, x.shape[:2])
    of_tokens = position_bias(table, tables, shift_index).expand(x.shape[1], -1, -1, -1)
    for b in range(2):
        for n in range(x.shape[1]):
            roots = mask.roots[b, n]
            expected = of_tokens[n][:, roots][:, :, roots] + mask.sizes[b, n].log()
            blocked = of_tokens[n][:, roots][:, :, roots] < -50
            assert_close(bias[b, n][~blocked], expected[~blocked], rtol=1e-5, atol=1e-5)
            assert (bias[b, n][blocked] < -50).all()  # enough, whatever the bias


def test_a_shifted_window_attends_within_its_parts():
    """In the last window, what a merged token gets comes from its own part alone."""
    module = randomise(WindowAttention(16, 2, 7)).eval()
    x, shift_index, mass = windows_of((14, 14), 3)
    mask = Match(7, 20, 3)(x, mass, shift_index)
    merged = mask.merge(x)
    part = ((mask.roots // 7 >= 4) * 2 + (mask.roots % 7 >= 4))[:, -1]  # (B, P)
    before = attend(module, 3, merged, shift_index, mask)[:, -1]
    merged[:, -1][part == 0] += torch.randn(16)
    after = attend(module, 3, merged, shift_index, mask)[:, -1]
    assert_close(after[part != 0], before[part != 0], rtol=0, atol=0)
    assert ((after[part == 0] - before[part == 0]).abs().amax(-1) > 1e-4).all()


def test_attention_has_whole_heads():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads, got 16 and 3"):
        WindowAttention(16, 3, 7)

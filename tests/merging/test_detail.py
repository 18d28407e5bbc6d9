"""The detail of a merged block: what it changes, and what it must not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.merging import Detail, Groups, build_mask, grow_details, unmerge_update
from tests.merging.test_block import count_calls, swin_block


def with_detail(block: nn.Module, dim: int = 8, hidden: int = 4) -> nn.Module:
    """A block whose detail is random, and not small."""
    block.merge.detail = Detail(dim, hidden).to(next(block.parameters()).dtype)
    for parameter in block.merge.detail.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return block.eval()


def slow_phi(detail: Detail, x: torch.Tensor) -> torch.Tensor:
    """phi token by token ``(..., C)``."""
    normed = x / x.square().mean(-1, keepdim=True).sqrt()
    hidden = nn.functional.gelu(normed @ detail.down.weight.T + detail.down.bias)
    return hidden @ detail.up.weight.T


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_fresh_detail_changes_nothing_to_the_bit(shifted, grad):
    block, x = swin_block(16, shifted), torch.randn(2, 17, 23, 8)
    with torch.set_grad_enabled(grad):
        before = block(x)
        block.merge.detail = Detail(8).eval()
        assert torch.equal(block(x), before)


@pytest.mark.parametrize("grad", [True, False])
def test_a_detail_adds_its_formula(grad):
    tokens = torch.randn(2, 6, 49, 8)
    module, detail = build_mask(7, 16), Detail(8, 4)
    nn.init.normal_(detail.up.weight)
    with torch.set_grad_enabled(grad):
        window_mask = module(tokens, None, None)
        merged = window_mask.merge_own(tokens)
        updated = torch.sin(merged)
        plain = unmerge_update(tokens, window_mask, merged, updated)
        with_phi = unmerge_update(tokens, window_mask, merged, updated, detail)
        _, u = window_mask.masks()
        expected = slow_phi(detail, tokens) - u @ slow_phi(detail, merged)
    assert_close(with_phi - plain, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_copies_of_a_token_get_no_correction(shifted):
    block = swin_block(28, shifted)
    nn.init.zeros_(block.attn.w_msa.relative_position_bias_table)
    tokens = torch.randn(2, 2 * 3, 7, 7, 8)
    for left in (0, 2, 5) if shifted else (0, 2, 4):  # pairs that no shift parts
        tokens[..., left + 1, :] = tokens[..., left, :]
    x = block.attn.windows.join(tokens.flatten(2, 3), 14, 21)
    with torch.no_grad():
        before = block(x)
        assert_close(with_detail(block)(x), before, rtol=1e-5, atol=1e-5)
        other = torch.randn(2, 14, 21, 8)
        assert (block(other) - swin_block(28, shifted)(other)).abs().max() > 1e-2


def test_padding_changes_no_token():
    """phi of padding reaches nothing: what is returned does not depend on where windows end."""
    block, x = with_detail(swin_block(16)), torch.randn(1, 9, 9, 8)
    alone = torch.cat((x, torch.randn(1, 9, 9, 8)))
    with torch.no_grad():
        assert_close(block(alone)[:1], block(x), rtol=1e-5, atol=1e-5)
        assert block(x).isfinite().all()


def test_the_mean_of_a_group_moves_by_curvature_alone():
    """With a detail that is nearly linear, a group's mean is what it was without."""
    tokens, detail = torch.randn(1, 2, 49, 8), Detail(8, 4)
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)  # the norm is no linear function
    nn.init.normal_(detail.up.weight)
    nn.init.constant_(detail.down.bias, 50.0)  # where a GELU is the identity
    mask = build_mask(7, 16)(tokens, None, None)
    merged = mask.merge(tokens)
    hidden = detail.hidden(tokens) - 50
    assert_close(hidden, (tokens * 8**0.5) @ detail.down.weight.T, rtol=1e-4, atol=1e-4)
    mask.lengths = torch.full(tokens.shape[:-1], 8**0.5)
    detail.hidden = lambda x, lengths=None: x @ detail.down.weight.T
    correction = detail(tokens, merged, mask)
    assert_close(mask.merge(correction), torch.zeros_like(merged), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(23, 31), (3, 2), (1, 40)])
@pytest.mark.parametrize("shifted", [False, True])
def test_in_chunks_as_all_at_once(shifted, size, monkeypatch):
    block, x = with_detail(swin_block(9, shifted)), torch.randn(2, *size, 8)
    expected = block(x)  # with gradients: at once
    for values in (1, 3000, 2**20):
        monkeypatch.setattr("ltm_mm.layers.swin_block.MERGED_CHUNK", values)
        count_calls(block.attn.w_msa)
        with torch.no_grad():
            assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    block = with_detail(swin_block(20, dim=2).double(), dim=2, hidden=3)
    x = torch.randn(1, 8, 9, 2, dtype=torch.float64, requires_grad=True)
    parameters = list(block.parameters())
    torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters), fast_mode=True)


def test_every_parameter_gets_a_gradient():
    block = with_detail(swin_block(16))
    block(torch.randn(1, 14, 14, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.merge.detail.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_are_finite_and_near(dtype):
    block, x = with_detail(swin_block(16)), torch.randn(1, 14, 21, 8)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", dtype):
            found = block(x)
        assert_close(found.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_long_and_zero_tokens_are_finite():
    detail = Detail(8, 4)
    nn.init.normal_(detail.up.weight)
    tokens = torch.zeros(1, 1, 49, 8)
    tokens[..., :10, :] = 1e20
    groups = torch.arange(49).view(1, 1, 49) // 7
    mask = Groups(groups, torch.arange(0, 49, 7).view(1, 1, 7), torch.full((1, 1, 7), 7.0))
    assert detail(tokens, mask.merge(tokens), mask).isfinite().all()


def test_a_state_dict_brings_its_detail():
    source = with_detail(swin_block(16))
    x = torch.randn(1, 14, 14, 8)
    for load in (
        lambda m: m.load_state_dict(source.state_dict()),
        lambda m: (grow_details(m, source.state_dict()), m.load_state_dict(source.state_dict())),
    ):
        other = swin_block(16)
        load(other)
        with torch.no_grad():
            assert torch.equal(other(x), source(x))


@pytest.mark.parametrize("sizes", [(0, None), (8, 0), (8.0, None), (True, 4)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="must be an int >= 1"):
        Detail(*sizes)

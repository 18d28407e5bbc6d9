"""A transformer block on merged tokens: the laws of ``Y = Z + U (f(X~) - X~)``."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.kernels import uses_onednn
from ltm_mm.merging import Groups, WindowMerge, build_mask, match, record_merges, unmerge_update
from ltm_mm.models.backbones import swin
from ltm_mm.ops import ShiftedWindows
from ltm_mm.ops import groups as group_ops
from tests.models.contract import randomise


def swin_block(keep: int, shifted: bool = False, dim: int = 8):
    block = swin.SwinBlock(
        dim,
        2,
        7,
        keep,
        shifted=shifted,
        hidden=2 * dim,
        drop_path=0.0,
        drop=0.0,
        act_cfg=dict(type="GELU"),
        norm_cfg=dict(type="LN"),
        with_cp=False,
    )
    return randomise(block).eval()


@pytest.mark.parametrize("shift", [0, 3])
def test_a_block_that_does_nothing_changes_nothing_to_the_bit(shift):
    cut = ShiftedWindows(7, shift)
    x = torch.randn(2, 17, 23, 6)
    module = build_mask(7, 16, shift)

    tokens = cut.cut(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            mask = module(tokens, cut.mass(17, 23, x), cut.shift_index(17, 23, x.device))
            merged = mask.merge_own(tokens)
            back = unmerge_update(tokens, mask, merged, merged.clone())
            assert torch.equal(cut.join(back, 17, 23), x)


@pytest.mark.parametrize("size", [(14, 21), (28, 14)])
@pytest.mark.parametrize("shifted", [False, True])
def test_merging_identical_copies_changes_nothing(shifted, size):
    """Attention with keys weighted by size, MLP and unmerging: exactly the plain block's."""
    plain, merged = swin_block(49, shifted), swin_block(28, shifted)
    merged.load_state_dict(plain.state_dict())
    for block in (plain, merged):
        nn.init.zeros_(block.attn.w_msa.relative_position_bias_table)
    # Three pairs of copies in every row of a window, which no shift parts: 21 in all.
    height, width = size
    windows = ShiftedWindows(7, 3 if shifted else 0)
    tokens = windows.cut(torch.randn(2, height, width, 8)).unflatten(2, (7, 7))
    for left in (0, 2, 5) if shifted else (0, 2, 4):
        tokens[:, :, :, left + 1] = tokens[:, :, :, left]
    x = windows.join(tokens.flatten(2, 3), height, width)
    assert_close(merged(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert_close(merged(x), plain(x), rtol=1e-5, atol=1e-5)


def test_without_weights_of_keys_copies_would_change_the_attention():
    """The law above can fail: it does with keys of the same weight."""
    block, plain = swin_block(28), swin_block(49)
    plain.load_state_dict(block.state_dict())
    for each in (block, plain):
        nn.init.zeros_(each.attn.w_msa.relative_position_bias_table)
    x = torch.randn(1, 7, 7, 8)
    for left in (0, 2, 4):
        x[:, :, left + 1] = x[:, :, left]
    same = Groups.of

    def unweighted(*args):
        groups = same(*args)
        groups.sizes = torch.ones_like(groups.sizes)
        return groups

    try:
        Groups.of = unweighted
        assert (block(x) - plain(x)).abs().max() > 1e-3
    finally:
        Groups.of = same
    assert_close(block(x), plain(x), rtol=1e-5, atol=1e-5)


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    hook = lambda *_: calls.append(1)  # noqa: E731
    hook.in_parts = True  # else the block would not run in parts
    module.register_forward_pre_hook(hook)
    return calls


@pytest.mark.parametrize("size", [(23, 31), (14, 21), (3, 2), (1, 40), (29, 7)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("keep", [49, 25, 5])
def test_in_chunks_as_all_at_once(keep, shifted, size, monkeypatch):
    block, x = swin_block(keep, shifted), torch.randn(2, *size, 8)
    if not uses_onednn(x.detach(), block.norm1.weight.detach()):
        pytest.skip("no oneDNN here: there are no chunks")
    expected = block(x)  # with gradients: at once
    for values in (1, 3000, 2**20):
        monkeypatch.setattr("ltm_mm.layers.swin_block.MERGED_CHUNK", values)
        monkeypatch.setattr("ltm_mm.kernels.windows.CHUNK", values)
        calls = count_calls(block.attn.w_msa)
        with torch.no_grad():
            assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        if values == 1:
            assert len(calls) == -(-size[0] // 7)  # a row of windows at a time
        monkeypatch.undo()


def test_padding_is_read_by_nobody():
    """No group holds both padding and tokens, and what stands in padding is in no mean."""
    block, x = swin_block(16), torch.randn(1, 9, 9, 8)
    tokens, mass, _ = _windows(x)
    mask = block.merge(tokens, mass, None)
    filled = torch.where(mass.unsqueeze(-1) > 0, tokens, 1e3 * torch.randn_like(tokens))
    assert_close(mask.merge(filled), mask.merge(tokens))
    assert_close(mask.merge(filled), mask.masks()[0].mT @ filled)
    group_index = mask.group_index[0].gather(1, mask.roots[0])
    assert_close(group_index, torch.arange(16).expand(4, -1))
    mixed = [(mass[0, n] == 0)[mask.group_index[0, n] == k] for n in range(4) for k in range(16)]
    assert all(group.all() or not group.any() for group in mixed)


def _windows(x):
    cut = ShiftedWindows(7, 0)
    return cut.cut(x), cut.mass(*x.shape[1:3], x), None


@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_are_those_of_finite_differences(shifted, by_index, monkeypatch):
    monkeypatch.setattr(group_ops, "by_index", lambda _: by_index)
    block = swin_block(20, shifted, dim=2).double()
    x = torch.randn(1, 8, 9, 2, dtype=torch.float64, requires_grad=True)
    parameters = list(block.parameters())
    torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters), fast_mode=True)


def test_groups_move_no_gradient():
    tokens = torch.randn(1, 49, 4, requires_grad=True)
    found = match(tokens, (16, 8), sums=True)
    assert not found.sums.requires_grad


def test_merges_are_recorded_with_their_groups():
    model = nn.Sequential(swin_block(49), swin_block(25), swin_block(9, shifted=True))
    x = torch.randn(2, 10, 16, 8)
    with record_merges(model) as merges, torch.no_grad():
        recorded = model(x)
    with torch.no_grad():
        assert_close(recorded, model(x), rtol=1e-5, atol=1e-5)
    assert [name for name, _ in merges] == ["1.merge", "2.merge"]
    for (_, merge), keep in zip(merges, (25, 9), strict=True):
        assert isinstance(merge, WindowMerge)
        assert merge.grid == (10, 16)
        assert merge.merged.shape == (2, 2 * 3 * keep, 8)
        groups = merge.groups()
        assert groups.shape == (2, 10, 16)
        # A merged token is the mean of the tokens that say they belong to it.
        for b in range(2):
            for k in groups[b].unique():
                mean = merge.tokens[b][groups[b] == k].mean(0)
                assert_close(merge.merged[b, k], mean, rtol=1e-4, atol=1e-5)
        amounts = torch.rand(2, 10, 16, 3)
        shared = merge.share(amounts)
        assert_close(shared.sum(1), amounts.sum((1, 2)))
        k = groups[0, 5, 5]
        assert_close(shared[0, k], amounts[0][groups[0] == k].sum(0))
    with record_merges(nn.Linear(1, 1)) as others, torch.no_grad():
        model(x)
    assert not others

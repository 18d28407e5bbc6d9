"""Mask modules: padding, and regions of shifted windows."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.merging import Match, build_mask
from ltm_mm.merging.masks import window_order
from ltm_mm.ops import ShiftedWindows, window_regions

GRIDS = [(14, 21), (23, 31), (7, 7), (8, 3), (1, 1), (30, 15)]


def windows_of(height, width, window, shift, channels=6):
    """Windows of a random grid with their mass and shift mask, as a block gives them."""
    cut = ShiftedWindows(window, shift)
    x = torch.randn(2, height, width, channels)
    return cut.cut(x), cut.mass(height, width, x), cut.shift_index(height, width, x.device)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("window", "shift"), [(7, 0), (7, 3), (4, 0), (4, 2), (8, 4), (5, 2)])
def test_laws_of_a_mask(window, shift, grid):
    tokens, mass, shift_index = windows_of(*grid, window, shift)
    count = window * window
    for keep in {4 if shift else 1, count // 4, count // 2, count - 1}:
        module = build_mask(window, keep, shift)
        mask = module(tokens, mass, shift_index)
        g, u = mask.masks()
        n = tokens.shape[1]
        assert g.shape == u.shape == (2, n, count, keep)
        assert_close(u.sum(-1), torch.ones(2, n, count))
        assert_close(mask.sizes.sum(-1), torch.full((2, n), float(count)))
        real = torch.ones(1, n, count) if mass is None else mass
        assert (g * (1 - real).unsqueeze(-1) == 0).all()  # padding has no weight
        sums = g.sum(-2)
        stands = mask.masses() > 1e-3
        assert_close(sums[stands], torch.ones(int(stands.sum())))
        assert_close(mask.masses().sum(-1), real.sum(-1).expand(2, n))
        assert ((sums < 1 + 1e-5) & g.isfinite().all((-1, -2)).unsqueeze(-1)).all()
        assert ((u == 0) | (u == 1)).all()
        if shift:
            region = window_regions(window, shift)[shift_index].expand(2, n, count)
            share = torch.stack([(u * (region == r).unsqueeze(-1)).sum(-2) for r in range(4)], -1)
            real_share = torch.stack(
                [(g * (region == r).unsqueeze(-1)).sum(-2) for r in range(4)], -1
            )
            # Each merged token is made of one region, and its update goes to no other one.
            assert ((real_share > 1e-6).sum(-1) <= 1).all()
            assert ((share > 1e-6).sum(-1) <= 1).all()
        merged = mask.merge(tokens)
        assert_close(merged, g.mT @ tokens, rtol=1e-4, atol=1e-5)
        if mask.merged is not None:
            assert_close(mask.merged, merged, rtol=1e-4, atol=1e-5)
        update = torch.randn_like(merged)
        assert_close(mask.unmerge(update), u @ update)
        amounts = torch.rand(2, n, count, 3)
        assert_close(mask.share(amounts), u.mT @ amounts)


def test_padding_merges_with_padding_first():
    """Windows of 7 real tokens of 49: 42 of padding are enough to merge 24 pairs of."""
    tokens, mass, shift_index = windows_of(7, 8, 7, 0)
    mask = Match(7, 25)(tokens, mass, shift_index)
    padded = mask.group_index[:, 1, :].unflatten(1, (7, 7))[:, :, 1:].flatten(1)
    real = mask.group_index[:, 1].unflatten(1, (7, 7))[:, :, 0]
    for b in range(2):
        assert not set(padded[b].tolist()) & set(real[b].tolist())
        assert len(set(real[b].tolist())) == 7  # no two real ones share a group
    # In single precision and with all else equal, padding is nobody's mean.
    assert_close(mask.masses()[:, 1].sort(1).values[:, -7:], torch.ones(2, 7))


def test_like_tokens_share_a_group_and_unlike_ones_do_not():
    """Two kinds of tokens, in halves of each window: no group has both."""
    tokens = torch.randn(2, 1, 1, 16).repeat(1, 3, 49, 1)
    tokens[0, :, 20:] += 0.01 * torch.randn(3, 29, 16)
    other = torch.randn(2, 3, 1, 16)
    left = torch.arange(49) % 7 < 3
    tokens = torch.where(left[:, None], tokens, other + 0.01 * torch.randn(2, 3, 49, 16))
    group_index = Match(7, 12)(tokens, None, None).group_index
    for b in range(2):
        for n in range(3):
            assert not set(group_index[b, n, left].tolist()) & set(
                group_index[b, n, ~left].tolist()
            )


def test_window_order_takes_one_part_after_the_other():
    order = window_order(5, 2)
    assert sorted(order.tolist()) == list(range(25))
    assert order[:9].tolist() == [0, 1, 2, 5, 6, 7, 10, 11, 12]
    regions = window_regions(5, 2)[3][order]
    assert regions.tolist() == sorted(regions.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype):
    module, x = build_mask(7, 25), 100 * torch.randn(1, 3, 49, 16)
    exact = module(x, None, None)
    with torch.autocast("cpu", dtype=dtype):
        mask = module(x, None, None)
        merged = mask.merge(x)
        back = mask.unmerge(merged * 0.5)
    for half, full in (
        (merged, exact.merge(x)),
        (mask.masks()[1], exact.masks()[1]),
        (back, exact.unmerge(exact.merge(x) * 0.5)),
    ):
        assert half.isfinite().all()
        assert (half.float() - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 49), "keep must lie in 1..48 for a window of 7 x 7 tokens, got 49"),
        ((7, 0), "keep must lie in 1..48"),
        ((7, 3, 3), "keep must lie in 4..48 for .* tokens that is shifted, got 3"),
    ],
)
def test_impossible_masks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_mask(*arguments)

"""Windows merged into a smaller grid: masks, masses, the way back, and two merges in a chain."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ltm_mm.merging.grid import GridMerge, GridMerger, keep_norm, unmerge_all, unmerge_grid
from ltm_mm.ops import to_windows

GRIDS = [(7, 7), (14, 21), (9, 16), (1, 30), (8, 6), (1, 1)]
grids = pytest.mark.parametrize(("height", "width"), GRIDS)


def randomised(module: nn.Module, std: float = 0.5) -> nn.Module:
    """Every parameter away from its special start, so that nothing cancels."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def merger(side: int = 5, window: int = 7) -> GridMerger:
    return randomised(GridMerger(window, side))


def chain(x: torch.Tensor) -> tuple[GridMerge, GridMerge]:
    """7 -> 5 -> 3 tokens per window side."""
    first = merger()(x)
    return first, merger(3, 5)(first.merged_grid, first)


@grids
def test_merged_tokens_form_a_grid_and_rows_of_u_sum_to_one(height, width):
    merged = merger()(torch.randn(2, height, width, 16))
    assert merged.merged_grid.shape == (2, -(-height * 5 // 7), -(-width * 5 // 7), 16)
    assert_close(merged.merged, merged.merged_grid.flatten(1, 2))
    assert merged.grid == (height, width)
    assert_close(merged.u.sum(-1), torch.ones(merged.u.shape[:-1]))


@grids
def test_a_constant_map_stays_constant(height, width):
    x = torch.randn(1, 1, 1, 16).expand(2, height, width, 16)
    for merged in chain(x):
        assert_close(merged.merged_grid, x[:, :1, :1].expand_as(merged.merged_grid))


@grids
def test_unchanged_merged_tokens_give_the_tokens_back_to_the_bit(height, width):
    x = torch.randn(2, height, width, 16)
    first, second = chain(x)
    assert_close(unmerge_grid(second.merged_grid, second), first.merged_grid, rtol=0, atol=0)
    assert_close(unmerge_grid(first.merged_grid, first), x, rtol=0, atol=0)
    assert_close(unmerge_all(second.merged_grid, second), x, rtol=0, atol=0)
    assert unmerge_all(x, None) is x


@grids
def test_a_constant_update_reaches_every_token_whole(height, width):
    x = torch.randn(2, height, width, 16)
    _, second = chain(x)
    assert_close(unmerge_all(second.merged_grid + 0.25, second), x + 0.25)


@grids
def test_masses_add_up_to_the_tokens(height, width):
    """Every merged token stands for a part of the map, and all of them for all of it."""
    for merged in chain(torch.randn(2, height, width, 16)):
        mass = merged.merged_mass()
        assert mass.shape == (*merged.merged_grid.shape[:3], 1)
        assert (mass > 0).all()
        assert_close(mass.sum((1, 2, 3)), torch.full((2,), float(height * width)))
        assert_close(merged.share(torch.ones(2, height, width, 1)), mass.flatten(1, 2))


@grids
def test_sharing_is_the_transpose_of_unmerging(height, width):
    """What tokens have goes to where their update comes from, to the same shares."""
    x = torch.randn(2, height, width, 4)
    for merged in chain(x):
        update, amounts = torch.randn_like(merged.merged_grid), torch.randn_like(x)
        back = unmerge_all(merged.merged_grid + update, merged) - x
        assert_close(
            (merged.share(amounts) * update.flatten(1, 2)).sum(),
            (amounts * back).sum(),
            rtol=1e-4,
            atol=1e-3,
        )


@grids
def test_groups_name_where_most_of_an_update_comes_from(height, width):
    first, second = chain(torch.randn(2, height, width, 16))
    earlier, later = slow_groups(first), slow_groups(second)
    assert_close(first.groups(), earlier)
    assert_close(
        second.groups(), later.flatten(1).gather(1, earlier.flatten(1)).view(earlier.shape)
    )


def slow_groups(merged: GridMerge) -> torch.Tensor:
    """Token by token: the best of its window, or the edge's where that lies beyond."""
    batch, height, width, _ = merged.tokens.shape
    _, h, w, _ = merged.merged_grid.shape
    window, side = merged.window, round(merged.u.shape[-1] ** 0.5)
    group_index = torch.empty(batch, height, width, dtype=torch.long)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in group_index.shape)).tolist():
        at = i // window * -(-width // window) + j // window
        best = int(merged.u[b, at, i % window * window + j % window].argmax())
        row, col = i // window * side + best // side, j // window * side + best % side
        group_index[b, i, j] = min(row, h - 1) * w + min(col, w - 1)
    return group_index


def slow_merge(
    module: GridMerger, x: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One window at a time, only its real tokens: the formulas as they are written."""
    mask, w, s = module.mask, module.window, module.side
    scale = 8.0 * mask.log_scale.exp()
    batch, height, width, dim = x.shape
    slots = x.new_empty(batch, -(-height * s // w), -(-width * s // w), dim)
    restored = x.new_empty(x.shape)
    windows = (range(batch), range(0, height, w), range(0, width, w))
    for b, top, left in ((b, r, c) for b in windows[0] for r in windows[1] for c in windows[2]):
        rows, cols = slice(top, min(top + w, height)), slice(left, min(left + w, width))
        tokens, weight = x[b, rows, cols].flatten(0, 1), mass[b, rows, cols].flatten(0, 1)
        prior = mask.prior.view(w, w, -1)[: rows.stop - top, : cols.stop - left].flatten(0, 1)

        def compared(merged, tokens=tokens, prior=prior):
            z, y = (F.layer_norm(t, (dim,)) for t in (tokens, merged))
            return prior + scale * z @ (y - y.mean(0)).T / dim

        g = (prior + weight.log()).softmax(0)
        g = (compared(g.T @ tokens) + weight.log()).softmax(0)
        merged = g.T @ tokens
        u = compared(merged).softmax(1)
        squares = g.T @ tokens.square().sum(1)
        merged = merged * (squares.sqrt() / merged.norm(dim=1)).clamp(max=2)[:, None]
        cell = slice(top // w * s, (top // w + 1) * s), slice(left // w * s, (left // w + 1) * s)
        kept = slots[b, cell[0], cell[1]]
        kept.copy_(merged.view(s, s, dim)[: kept.shape[0], : kept.shape[1]])
        # Merged tokens beyond the edge are left out; the last ones stand for them.
        i, j = (torch.arange(s).clamp(max=n - 1) for n in kept.shape[:2])
        update = u @ kept[i][:, j].flatten(0, 1).sin()  # any update
        restored[b, rows, cols] = (tokens + update).view(*x[b, rows, cols].shape)
    return slots, restored


@grids
def test_equals_a_loop_over_real_tokens(height, width):
    """Padding therefore decides nothing: the loop never sees it."""
    module, later = merger().double(), merger(3, 5).double()
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    with torch.no_grad():
        first = module(x)
        second = later(first.merged_grid, first)
        for mine, given, merged, mass in (
            (module, x, first, torch.ones(2, height, width, 1).double()),
            (later, first.merged_grid, second, first.merged_mass()),
        ):
            slots, restored = slow_merge(mine, given, mass)
            assert_close(merged.merged_grid, slots)
            assert_close(
                unmerge_grid(merged.merged_grid + merged.merged_grid.sin(), merged), restored
            )


def test_a_later_merge_weighs_tokens_by_their_mass():
    first = merger()(torch.randn(1, 9, 16, 16))
    later = merger(3, 5)
    weighted, alike = later(first.merged_grid, first), later(first.merged_grid)
    assert_close(weighted.merged_mass().sum(), torch.tensor(9.0 * 16))
    assert_close(alike.merged_mass().sum(), torch.tensor(7.0 * 12))
    assert (weighted.merged_grid - alike.merged_grid).abs().max() > 1e-3


def test_an_image_does_not_depend_on_its_batch():
    module, later, x = merger(), merger(3, 5), torch.randn(3, 9, 16, 16)
    first = module(x)
    second = later(first.merged_grid, first)
    for i in range(3):
        alone = module(x[i : i + 1])
        for a, b in ((alone, first), (later(alone.merged_grid, alone), second)):
            assert_close(a.merged_grid, b.merged_grid[i : i + 1])
            assert_close(a.u, b.u[i : i + 1])


def test_every_parameter_gets_a_gradient():
    module, later = merger(), merger(3, 5)
    first = module(torch.randn(2, 9, 16, 16))
    second = later(first.merged_grid.sin(), first)
    unmerge_all(second.merged_grid.tanh(), second).square().sum().backward()
    for name, parameter in [*module.named_parameters(), *later.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_merged_tokens_are_as_long_as_their_tokens_but_not_blown_up():
    """Means of equally long tokens are as long; opposite tokens stay near their mean, zero."""
    module = GridMerger(7, 5)
    similar = 1 + 0.3 * torch.randn(1, 14, 14, 16)
    similar = 3 * similar / similar.norm(dim=-1, keepdim=True)
    assert_close(module(similar).merged_grid.norm(dim=-1), torch.full((1, 10, 10), 3.0))
    assert module(torch.zeros(1, 7, 7, 16)).merged_grid.abs().max() == 0
    tokens = torch.ones(1, 1, 2, 16) * torch.tensor([1.0, -1.0])[:, None]
    share = torch.tensor([[0.5, 0.6, 0.9], [0.5, 0.4, 0.1]]).expand(1, 1, 2, 3)
    means = share.mT @ tokens  # 0, 0.2 and 0.8 of a token's length
    assert_close(keep_norm(means, tokens, share)[0, 0, :, 0], torch.tensor([0.0, 0.4, 1.0]))


def test_gradients_are_those_of_finite_differences(monkeypatch):
    """What the masks compare counts as given: it has no gradient."""
    module, later = randomised(GridMerger(3, 2)).double(), randomised(GridMerger(2, 1)).double()
    x = torch.randn(1, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    parameters = [*module.parameters(), *later.parameters()]
    given, calls = [], []

    def compared(x):
        place = len(calls)
        calls.append(place)
        if place == len(given):
            given.append(F.layer_norm(x.detach(), x.shape[-1:]))
        return given[place]

    monkeypatch.setattr("ltm_mm.merging.soft._direction", compared)

    def run(x, *_):
        calls.clear()
        first = module(x)
        second = later(first.merged_grid.sin(), first)
        return unmerge_all(second.merged_grid.cos(), second)

    torch.autograd.gradcheck(run, (x, *parameters))
    assert len(given) == 2 * 3


def test_content_makes_the_way_back_right_where_kinds_meet():
    """What a token-wise layer changes, computed on merged tokens of two kinds' slanted stripes."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(35.0), indexing="ij")
    kind = torch.stack([((x + (k + 0.4) * y) / 6).floor() % 2 for k in range(2)])
    tokens = torch.randn(2, 16)[kind.long()] + 0.1 * torch.randn(2, 28, 35, 16)
    layer = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    module, errors = GridMerger(7, 4), []
    with torch.no_grad():
        wanted = tokens + layer(tokens)
        for log_scale in (-torch.inf, 0.0):  # the places alone decide; content does, too
            module.mask.log_scale.fill_(log_scale)
            merged = module(tokens)
            found = unmerge_grid(merged.merged_grid + layer(merged.merged_grid), merged)
            errors.append(float((found - wanted).norm() / (wanted - tokens).norm()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype):
    module, later, x = GridMerger(7, 5), GridMerger(5, 3), 100 * torch.randn(1, 9, 16, 16)

    def run():
        first = module(x)
        second = later(first.merged_grid, first)
        return second.merged_grid, second.u, unmerge_all(second.merged_grid * 1.5, second)

    with torch.autocast("cpu", dtype=dtype):
        found = run()
    for half, full in zip(found, run(), strict=True):
        assert half.isfinite().all()
        assert (half.float() - full).norm() < 0.02 * full.norm()


def test_merged_tokens_stay_in_their_places():
    """With the prior alone, a merged token is made of what is around its place on the grid."""
    axis = (torch.arange(28.0) + 0.5) / 28
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).unsqueeze(0)
    module = GridMerger(7, 5)
    nn.init.constant_(module.mask.log_scale, -torch.inf)
    windows = to_windows(positions, 7)
    mask = module.mask(windows, None)
    found = mask.merged.view(4, 4, 5, 5, 2).transpose(1, 2).reshape(20, 20, 2)
    axis = (torch.arange(20.0) + 0.5) / 20
    expected = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    assert (found - expected).abs().max() < 0.25 / 28

"""Sums over groups, and the way back, both ways of doing it against a loop."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import flat_index, full_precision, sum_groups, take_groups
from ltm_mm.ops import groups as group_ops

SHAPES = [((2,), 9, 4), ((2, 3), 16, 16), ((1, 4), 7, 1)]
shapes = pytest.mark.parametrize(("lead", "tokens", "groups"), SHAPES)


@pytest.fixture(params=[True, False], ids=["rows", "products"])
def _each_way(request, monkeypatch):
    monkeypatch.setattr(group_ops, "by_index", lambda _: request.param)


@pytest.mark.usefixtures("_each_way")
@shapes
def test_sums_and_the_way_back_are_those_of_a_loop(lead, tokens, groups):
    group_index = torch.randint(0, groups, (*lead, tokens))  # some groups may be empty
    x, update = torch.randn(*lead, tokens, 6), torch.randn(*lead, groups, 6)
    sums, back = torch.zeros_like(update), torch.zeros_like(x)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in group_index.shape)).view(
        -1, group_index.ndim
    ):
        *own, k = at.tolist()
        group = int(group_index[(*own, k)])
        sums[(*own, group)] += x[(*own, k)]
        back[(*own, k)] = update[(*own, group)]
    assert_close(sum_groups(x, group_index, groups), sums)
    assert_close(take_groups(update, group_index), back, rtol=0, atol=0)


@pytest.mark.usefixtures("_each_way")
def test_gradients_are_those_of_finite_differences():
    group_index = torch.randint(0, 4, (2, 9))
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    update = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: sum_groups(x, group_index, 4), x)
    torch.autograd.gradcheck(lambda x: take_groups(x, group_index), update)


@pytest.mark.usefixtures("_each_way")
def test_sums_keep_single_precision_under_autocast():
    x, group_index = 1 + torch.rand(3, 1000, 2), torch.zeros(3, 1000, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        sums = sum_groups(x, group_index, 1)
    assert_close(sums, x.sum(1, keepdim=True))


def test_rows_of_all_sets_groups():
    group_index = torch.tensor([[[0, 1], [1, 1]], [[2, 0], [0, 2]]])
    found = flat_index(group_index, 3)
    assert_close(found, torch.tensor([0, 1, 4, 4, 8, 6, 9, 11]), rtol=0, atol=0)


def test_full_precision_ends_where_it_began():
    a = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(a):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with full_precision(a):
        assert (a @ a).dtype == torch.float32

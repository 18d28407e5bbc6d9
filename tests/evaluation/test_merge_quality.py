"""Statistics of masks on masks whose values are known."""

import math

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.evaluation.held_out import held_out_information
from ltm_mm.evaluation.merge_quality import (
    achievable_accuracy,
    prior_shift,
    real_rows,
    row_entropy,
    untrained,
)
from ltm_mm.layers import TokenMerger


def test_entropy() -> None:
    assert_close(row_entropy(torch.full((2, 3, 5), 0.2)), torch.full((2, 3), math.log(5)))
    assert_close(row_entropy(torch.eye(4)), torch.zeros(4))


def test_an_untrained_mask_has_not_moved() -> None:
    merged = TokenMerger(7, 5, steps=0)(torch.randn(2, 14, 7, 8))
    assert_close(prior_shift(merged.back, 7), torch.zeros(2, 2, 49), atol=1e-6, rtol=0)
    moved = torch.roll(torch.eye(4), 1, 0)  # w = 2, s = 2: the prior is nearly the identity
    assert_close(prior_shift(moved, 2), torch.ones(4), atol=0.05, rtol=0)


def test_rows_of_padding_do_not_count() -> None:
    merged = TokenMerger(7, 5, steps=0)(torch.randn(2, 9, 7, 8))
    rows = real_rows(merged)
    assert rows.shape == (1, 2, 49)
    assert rows.sum((0, 2)).tolist() == [49, 14]


def slow_accuracy(counts: torch.Tensor, group: torch.Tensor) -> float:
    kept = sum(counts[group == g].sum(0).max().item() for g in group.unique())
    return kept / counts.sum().item()


def test_achievable_accuracy() -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, 5, (1, 4, 4, 3))
    back = torch.randn(1, 1, 16, 4).softmax(-1)
    kept, total = achievable_accuracy(counts, back, 4)
    expected = slow_accuracy(counts.view(16, 3), back[0, 0].argmax(-1))
    assert float(kept / total) == pytest.approx(expected)


def test_achievable_accuracy_by_hand() -> None:
    """A 2 x 2 window into one slot: the left half of it is one segment, the right another."""
    counts = torch.tensor([[[[9, 0], [1, 8]], [[9, 0], [0, 9]]]])
    kept, total = achievable_accuracy(counts, torch.ones(1, 1, 4, 1), 2)
    assert (kept, total) == (19, 36)
    own = torch.eye(4)[None, None]  # each token its own slot: only the mixed one loses
    assert achievable_accuracy(counts, own, 2) == (35, 36)
    halves = torch.eye(2)[[0, 1, 0, 1]][None, None]
    assert achievable_accuracy(counts, halves, 2) == (35, 36)


def test_achievable_accuracy_with_padded_windows() -> None:
    counts = torch.randint(0, 5, (2, 9, 10, 3))
    back = untrained(torch.empty(49, 25), 7).expand(2, 4, 49, 25)
    kept, total = achievable_accuracy(counts, back, 7)
    assert total == counts.sum()
    assert 0 < kept <= total


@pytest.mark.parametrize("groups", [1, 4])
def test_held_out_information_of_separated_groups(groups: int) -> None:
    """Tokens in tight groups, two groups to a class: I(A;X) = log groups, I(A;Y) = log classes."""
    torch.manual_seed(0)
    centres = torch.randn(groups, 16)
    group = torch.arange(800) // 2 % groups  # in both halves alike
    tokens = centres[group] + 1e-3 * torch.randn(800, 16)
    classes = max(groups // 2, 1)
    found = held_out_information(tokens, group // 2, 5, centroids=groups, temperature=1e-3)
    assert found["I_AX"] == pytest.approx(math.log(groups), abs=1e-3)
    assert found["I_AY"] == pytest.approx(math.log(classes), abs=1e-3)
    assert found["IB"] == pytest.approx(found["I_AX"] - found["I_AY"])


def test_held_out_information_of_noise_is_small_about_the_class() -> None:
    torch.manual_seed(0)
    tokens, labels = torch.randn(4000, 16), torch.randint(3, (4000,))
    found = held_out_information(tokens, labels, 3, centroids=8)
    assert 0 <= found["I_AY"] < 0.01
    assert found["I_AY"] < found["I_AX"]


def test_clusters_and_information_are_of_different_tokens() -> None:
    """Two groups to find clusters on; all tokens to be measured are of one of them."""
    torch.manual_seed(0)
    centres = torch.randn(2, 16)
    group = torch.arange(400) % 4 // 2 * (torch.arange(400) % 2 == 0)
    found = held_out_information(centres[group], group, 2, centroids=2, temperature=1e-3)
    assert found["I_AX"] == pytest.approx(0, abs=1e-6)

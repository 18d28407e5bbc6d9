"""Statistics of merging on groups whose values are known."""

import math

import pytest
import torch
from torch import nn

from ltm_mm.evaluation.held_out import held_out_information
from ltm_mm.evaluation.merge_quality import achievable_accuracy, count_groups, pooling_groups
from ltm_mm.merging import Merge, record_merges
from ltm_mm.models import LTMEfficientViT, LTMSwin, LTMViT


def slow_accuracy(counts: torch.Tensor, groups: torch.Tensor) -> tuple[float, float]:
    """One image and one group at a time."""
    kept = 0.0
    for image, own in zip(counts, groups, strict=True):
        kept += sum(image[own == g].sum(0).max().item() for g in own.unique())
    return kept, counts.sum().item()


def test_achievable_accuracy() -> None:
    counts = torch.randint(0, 5, (2, 9, 10, 3))
    groups = torch.randint(0, 12, (2, 9, 10))
    assert achievable_accuracy(counts, groups) == slow_accuracy(counts, groups)


def test_achievable_accuracy_by_hand() -> None:
    """A grid of 2 x 2: the left half of it is one segment, the right another."""
    counts = torch.tensor([[[[9, 0], [1, 8]], [[9, 0], [0, 9]]]])
    assert achievable_accuracy(counts, torch.zeros(1, 2, 2, dtype=torch.long)) == (19, 36)
    # Each token its own group, or the halves: only the mixed token loses.
    assert achievable_accuracy(counts, torch.arange(4).view(1, 2, 2)) == (35, 36)
    assert achievable_accuracy(counts, torch.tensor([[[0, 1], [0, 1]]])) == (35, 36)


def test_count_groups() -> None:
    groups = torch.tensor([[[0, 0, 5]], [[0, 2, 3]]])
    assert count_groups(groups) == 2 + 3


def merges_of(model: nn.Module, size: tuple[int, int]) -> list[Merge]:
    with torch.no_grad(), record_merges(model.eval()) as merges:
        model(torch.rand(1, 3, *size))
    return [merge for _, merge in merges]


def swin(keep: int, window: int) -> LTMSwin:
    return LTMSwin(
        embed_dims=8, depths=(2,), num_heads=(1,), strides=(4,), out_indices=(0,),
        window_size=window, keep=keep,
    )  # fmt: skip


def test_pooling_is_a_regular_grid() -> None:
    """4 x 4 windows with 4 groups each: squares of 2 x 2 tokens, shifted windows' too."""
    plain, shifted = merges_of(swin(4, 4), (32, 48))
    rows, cols = torch.meshgrid(torch.arange(8) // 2, torch.arange(12) // 2, indexing="ij")
    squares = rows * 6 + cols
    for merge in (plain, shifted):
        found = pooling_groups(merge)
        assert found.shape == (1, 8, 12)
        pairs = torch.stack([found[0], squares]).flatten(1).unique(dim=1)
        assert pairs.shape[1] == 24 == len(squares.unique()), "one group per square and back"
    windows = pooling_groups(plain)[0] // 4
    assert windows[:4, :4].unique().tolist() == [0]
    assert windows[4:, 8:].unique().tolist() == [5]


@pytest.mark.parametrize("keep", [9, 14])
def test_pooling_keeps_to_windows_and_their_parts(keep: int) -> None:
    """As many groups as the mask has, none across a window's or a shifted window's part."""
    for merge in merges_of(swin(keep, 7), (56, 84)):  # 14 x 21 tokens
        found, group_index = pooling_groups(merge)[0], merge.groups()[0]
        assert len(found.unique()) == len(group_index.unique()) == keep * 6
        windows = merge.windows.cut(torch.arange(14 * 21).view(1, 14, 21, 1))[0, ..., 0]  # (n, N)
        for group in found.unique():
            members = found == group
            inside = torch.isin(windows, members.flatten().nonzero())
            assert inside.any(1).sum() == 1
            rows, cols = members.nonzero().T
            shift = merge.windows.shift
            assert len(((rows - shift) // 7).unique()) == len(((cols - shift) // 7).unique()) == 1
            if shift:  # a part: what lies in one window of the unshifted grid, too
                assert len((rows // 7).unique()) == len((cols // 7).unique()) == 1


def test_pooling_of_grids_and_of_whole_images() -> None:
    merge = merges_of(LTMEfficientViT("b0", keep=(None, None, 16, None)), (256, 256))[0]
    rows, cols = torch.meshgrid(torch.arange(16) // 2, torch.arange(16) // 2, indexing="ij")
    pairs = torch.stack([pooling_groups(merge)[0], rows * 8 + cols]).flatten(1).unique(dim=1)
    assert pairs.shape[1] == 64
    first, second = merges_of(LTMEfficientViT("b0", keep=(None, None, (16, 4), None)), (256, 256))
    assert second.earlier is first
    assert pooling_groups(second) is None
    assert pooling_groups(merges_of(LTMViT("tiny", keep=0.5, num_layers=1), (64, 64))[0]) is None


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

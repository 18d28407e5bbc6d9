"""Matching against a slow reference, and its laws."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from ltm_mm.merging import match, matching, rounds
from ltm_mm.ops import groups as group_ops


def reference(tokens, schedule, sizes=None, penalty=None, order=None):
    """The rounds for one set ``(N, C)``, group by group in Python lists."""
    count = len(tokens)
    sizes = [1.0] * count if sizes is None else sizes.tolist()
    penalty = [0.0] * count if penalty is None else penalty.tolist()
    groups = [
        dict(root=i, members=[i], size=sizes[i], sum=tokens[i] * sizes[i], penalty=penalty[i])
        for i in range(count)
    ]
    for step, pairs in enumerate(schedule):
        first, second = groups[0::2], groups[1::2]
        found = []
        for a in first:
            gains = []
            for b in second:
                empty = not a["sum"].any() and not b["sum"].any()
                gain = 1.0 if empty else cosine_similarity(a["sum"], b["sum"], dim=0).item()
                if step or sizes != [1.0] * count:
                    gain = (gain - 1) * a["size"] * b["size"] / (a["size"] + b["size"])
                gains.append(gain - (a["penalty"] - b["penalty"]) ** 2)
            best = max(range(len(second)), key=gains.__getitem__)
            found.append((gains[best], a, second[best]))
        for _, a, b in sorted(found, key=lambda f: -f[0])[:pairs]:
            b["members"] += a["members"]
            b["size"] += a["size"]
            b["sum"] = b["sum"] + a["sum"]
            groups = [g for g in groups if g is not a]
        if step == 0 and order is not None:
            groups.sort(key=lambda g: order.tolist().index(g["root"]))
    return groups


@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize(
    ("count", "schedule", "weighted", "penalised", "ordered"),
    [
        (49, (16, 8), False, False, False),
        (49, (17, 11, 7, 5), False, True, True),
        (30, (9, 4), True, False, False),
        (31, (10,), True, True, False),
        (2, (1,), False, False, False),
    ],
)
def test_equals_the_slow_reference(
    count, schedule, weighted, penalised, ordered, by_index, monkeypatch
):
    monkeypatch.setattr(group_ops, "by_index", lambda _: by_index)
    monkeypatch.setattr(matching, "by_index", lambda _: by_index)
    monkeypatch.setattr(matching, "exporting", lambda: not by_index)
    tokens = torch.randn(3, 4, count, 5)
    sizes = torch.randint(1, 5, (3, 4, count)).float() if weighted else None
    penalty = torch.randint(0, 2, (3, 4, count)) * 10.0 if penalised else None
    if penalised:
        penalty[1] = 0.0  # and some sets where all are alike
    order = torch.randperm(count) if ordered else None
    found = match(tokens, schedule, sizes, penalty, order, sums=True)
    assert found.group_index.shape == (3, 4, count)
    for i in range(3):
        for j in range(4):
            own = [None if t is None else t[i, j] for t in (sizes, penalty)]
            expected = reference(tokens[i, j], schedule, *own, order)
            assert found.roots[i, j].tolist() == [g["root"] for g in expected]
            for k, group in enumerate(expected):
                members = (found.group_index[i, j] == k).nonzero().flatten()
                assert members.tolist() == sorted(group["members"])
            assert_close(found.sizes[i, j], torch.tensor([g["size"] for g in expected]))
            assert_close(found.sums[i, j], torch.stack([g["sum"] for g in expected]))


@pytest.mark.parametrize("regions", [1, 4])
@pytest.mark.parametrize("count", [4, 25, 49, 64, 144])
def test_rounds_lead_to_every_number(count, regions):
    for keep in range(regions, count + 1):
        left = count
        for pairs in rounds(count, keep, regions):
            # So many pairs of one region there always are, even if all regions are odd.
            assert 1 <= pairs <= (left - regions + 1) // 2
            assert pairs <= -(-left // 3)
            left -= pairs
        assert left == keep


def test_groups_partition_the_tokens():
    tokens = torch.randn(5, 49, 8)
    for keep in (1, 9, 25, 48):
        found = match(tokens, rounds(49, keep))
        assert found.roots.shape == found.sizes.shape == (5, keep)
        counts = torch.stack([(found.group_index == k).sum(1) for k in range(keep)], 1)
        assert_close(found.sizes, counts.float())
        assert counts.min() >= 1
        assert found.sums is None
        # Every root is a member of its own group.
        own = found.group_index.gather(1, found.roots)
        assert_close(own, torch.arange(keep).expand(5, -1))


def test_copies_find_each_other():
    """24 tokens twice, side by side, and one alone: merging 24 pairs merges the copies."""
    kinds = torch.randn(6, 25, 16)
    tokens = kinds.repeat_interleave(2, 1)[:, :49]
    found = match(tokens, rounds(49, 25))
    pairs = found.group_index[:, :48].unflatten(1, (24, 2))
    assert_close(pairs[..., 0], pairs[..., 1])
    assert_close(found.sizes.sort(1).values[:, 1:], torch.full((6, 24), 2.0))


def test_rounding_puts_copies_in_no_order():
    """Of a plain area the same tokens merge in every runtime, whatever it rounds."""
    copies = torch.randn(8, 1, 16).repeat(1, 49, 1)
    copies[4:, :10] = torch.randn(4, 10, 16)
    rounded = copies * (1 + 3e-7 * torch.randn(8, 49, 16))
    for keep in (25, 9):
        own, other = (match(x, rounds(49, keep)) for x in (copies, rounded))
        assert_close(own.group_index, other.group_index)
        assert_close(own.roots, other.roots)


def test_half_precision_tokens_are_compared_in_single_precision():
    tokens = 300 * torch.randn(2, 49, 64)  # lengths overflow in fp16
    for dtype in (torch.float16, torch.bfloat16):
        half = tokens.to(dtype)
        found, expected = match(half, (16, 8)), match(half.float(), (16, 8))
        assert_close(found.group_index, expected.group_index)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(match(half.float(), (16, 8)).group_index, expected.group_index)

"""Matching: which tokens are similar enough to share a group.

Source: bipartite matching in rounds is ToMe's idea (Bolya et al., ICLR 2023, arXiv 2210.09461);
Ward's criterion, several rounds on one set, regions and padding are ours, and so is the code.

Letters: N tokens per set (a window, or a whole image), K groups so far, P groups in the end,
C channels; ``...`` are sets, each matched separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import by_index, exporting, first_largest, full_precision, largest, packed, sum_groups


def rounds(count: int, keep: int, regions: int = 1) -> tuple[int, ...]:
    """How many pairs merge in each round.

    At most a third of the groups: merging fewer per round finds better partners, but more rounds
    take longer. Also at most half of the groups beyond one per region: that many pairs within a
    region always exist (see :func:`match`).

    Args:
        count: tokens per set (N).
        keep: groups left at the end (P), ``regions <= keep <= count``.
        regions: regions that never mix.

    >>> rounds(49, 25), rounds(49, 9), rounds(49, 9, regions=4)
    ((17, 7), (17, 11, 7, 5), (17, 11, 7, 5))
    """
    schedule, left = [], count
    while left > keep:
        most = max(min(-(-left // 3), (left - regions + 1) // 2), 1)
        schedule.append(min(most, left - keep))
        left -= schedule[-1]
    return tuple(schedule)


@dataclass
class Matched:
    """What matching found, set by set.

    Attributes:
        group_index: group of each token ``(..., N)`` int64.
        roots: the token that each group started from ``(..., P)`` int64.
        sizes: how many tokens each group stands for ``(..., P)``.
        sums: sum of each group's tokens, weighted by size ``(..., P, C)``; None if not requested.
        lengths: Euclidean norm of each token ``(..., N)``.
    """

    group_index: Tensor
    roots: Tensor
    sizes: Tensor
    sums: Tensor | None
    lengths: Tensor | None = None


@torch.no_grad()
def match(
    tokens: Tensor,
    schedule: Sequence[int],
    sizes: Tensor | None = None,
    penalty: Tensor | None = None,
    order: Tensor | None = None,
    sums: bool = False,
) -> Matched:
    """Group similar tokens.

    Each round splits the groups alternately into A and B. Each group in A is paired with the group
    in B that is cheapest to merge with, and the best pairs merge. The cost is Ward's on directions,
    ``(1 - cos(a, b)) |A| |B| / (|A| + |B|)``, with a and b the means of the groups.

    Args:
        tokens: ``(..., N, C)``.
        schedule: pairs that merge in each round, see :func:`rounds`; one round at least.
        sizes: number of tokens that each token already stands for ``(..., N)``; None: 1 each.
        penalty: a number per token ``(..., N)``; the squared difference of two is added to the cost
            of merging them. None: all equal.
        order: order of the tokens, in which later rounds split their groups ``(N,)``; None: as
            given.
        sums: whether to return the groups' sums.
    """
    lead, count = tokens.shape[:-2], tokens.shape[-2]
    x = packed(tokens) if torch.compiler.is_compiling() else tokens
    x = x.float().reshape(-1, count, x.shape[-1])  # (n, N, C)
    group_index = roots = torch.arange(count, device=x.device).expand(x.shape[0], count)
    size = x.new_ones(1, 1) if sizes is None else sizes.float().reshape(-1, count)
    size = size.expand(x.shape[0], count)
    if penalty is not None:
        penalty = packed(penalty.float().expand(*lead, count)).view(-1, count)
    total = x if sizes is None else x * size.unsqueeze(-1)
    lengths = torch.linalg.vector_norm(x, dim=-1)  # (n, N)
    length = lengths if sizes is None else lengths * size
    for step, pairs in enumerate(schedule):
        if step:
            length = torch.linalg.vector_norm(total, dim=-1)
        gains = _gains(
            total, length, None if step == 0 and sizes is None else size, penalty
        )  # (n, A, B)
        if torch.compiler.is_compiling():  # of one group there is no B, and no largest of none
            gains = F.pad(gains, (0, 1), value=-torch.inf)
        best, partner = largest(gains)
        # Of equal pairs (padding, plain areas) take the first: the same ones on every machine.
        merged = first_largest(best, pairs)
        target, left = _targets(merged, partner, total.shape[1], None if step else order)
        kept_at = torch.where(left, target, total.shape[1] - pairs)  # the last one falls away
        group_index = target if step == 0 else target.gather(1, group_index)
        roots = _kept(roots, kept_at, pairs)
        penalty = None if penalty is None else _kept(penalty, kept_at, pairs)
        size = size.new_zeros(x.shape[0], total.shape[1] - pairs).scatter_add(1, target, size)
        if sums or step < len(schedule) - 1:
            total = sum_groups(total, target, total.shape[1] - pairs)
    return Matched(
        group_index.reshape(*lead, count),
        packed(roots).view(*lead, roots.shape[1]),
        size.reshape(*lead, roots.shape[1]),
        total.reshape(*lead, *total.shape[1:]) if sums else None,
        lengths.reshape(*lead, count),
    )


def _gains(total: Tensor, length: Tensor, size: Tensor | None, penalty: Tensor | None) -> Tensor:
    """Gain of merging every A with every B ``(n, A, B)``, up to a constant per row.

    Args:
        total: sums of the groups ``(n, K, C)``; only their directions count.
        length: norm of the sums, or of the vectors that give the directions ``(n, K)``.
        size: of the groups ``(n, K)``; None: all equal.
        penalty: ``(n, K)`` or None.
    """
    inverse = length.clamp(min=1e-12).reciprocal()
    with full_precision(total):
        cos = torch.bmm(_alternate(total, 0), _alternate(total, 1).transpose(1, 2))
    cos = cos * inverse[:, 0::2].unsqueeze(-1) * inverse[:, 1::2].unsqueeze(-2)
    # Copies of one token (a plain area) must tie: rounding must not order them.
    cos = cos.clamp(max=1 - 1e-6)
    if penalty is None:
        return cos if size is None else _ward(cos, size)
    # On a CPU only the few sets with several penalties take these steps.
    some = None
    if by_index(total):
        some = (penalty != penalty[:, :1]).any(1).nonzero().squeeze(1)
        length, penalty, part = length[some], penalty[some], cos[some]
    else:
        part = cos
    empty = (length == 0).to(cos.dtype)  # padding: all equal
    part = part + empty[:, 0::2].unsqueeze(-1) * empty[:, 1::2].unsqueeze(-2)
    apart = (penalty[:, 0::2].unsqueeze(-1) - penalty[:, 1::2].unsqueeze(-2)).square()
    if some is None:
        return (part if size is None else _ward(part, size)) - apart
    gains = cos if size is None else _ward(cos, size)
    part = part if size is None else _ward(part, size[some])
    return gains.index_copy(0, some, part - apart)


def _alternate(total: Tensor, first: int) -> Tensor:
    """Every other group: ``(n, K, C)`` -> ``(n, A, C)`` or ``(n, B, C)``."""
    if exporting():  # runtimes copy rows faster than they slice with a step
        return total.index_select(1, torch.arange(first, total.shape[1], 2, device=total.device))
    return total[:, first::2]


def _ward(cos: Tensor, size: Tensor) -> Tensor:
    """Gains of merging groups of different sizes: cosines ``(n, A, B)``, sizes ``(n, K)``."""
    s, t = size[:, 0::2].unsqueeze(-1), size[:, 1::2].unsqueeze(-2)
    return (cos - 1) * (s * t / (s + t))


def _targets(
    merged: Tensor, partner: Tensor, count: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The new index of every group ``(n, K)``, and which groups remain ``(n, K)`` bool.

    Args:
        merged: indices in A of the groups that merge ``(n, r)``.
        partner: index in B of the partner of each A ``(n, A)``.
        count: groups so far (K).
        order: new order of the groups ``(K,)``; None: as they are.
    """
    merged_ids = 2 * merged  # among all groups
    left = torch.ones(merged.shape[0], count, dtype=torch.bool, device=merged.device)
    left = left.scatter(1, merged_ids, 0)
    if order is None:
        target = left.long().cumsum(1) - 1
    else:
        target = left.index_select(1, order).long().cumsum(1) - 1
        target = target.index_select(1, order.argsort())
    partners = 2 * partner.gather(1, merged) + 1
    return target.scatter(1, merged_ids, target.gather(1, partners)), left


def _kept(values: Tensor, targets: Tensor, pairs: int) -> Tensor:
    """Values ``(n, K)`` of the groups that remain, at their new indices ``(n, K - pairs)``."""
    count = values.shape[1] - pairs
    return values.new_zeros(values.shape[0], count + 1).scatter(1, targets, values)[:, :count]

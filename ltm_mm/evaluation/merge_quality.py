"""What a merge does: how many tokens it leaves, and whether its groups keep to segments.

Source: achievable segmentation accuracy is the superpixel literature's (Liu et al., CVPR 2011);
applying it to groups of merged tokens is ours.

Letters: B images, H x W tokens, K segments, M groups per image.
"""

from math import prod

import torch
from torch import Tensor

from ..merging import Merge, WindowMerge
from ..merging.grid import GridMerge
from ..merging.soft import prior_centers
from ..ops import ShiftedWindows


def achievable_accuracy(counts: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that keep their segment if every group of tokens may have only one.

    Args:
        counts: pixels of each segment in every token ``(B, H, W, K)``.
        groups: group of each token ``(B, H, W)`` int64.

    Returns:
        Pixels that keep their segment, and all pixels: two scalars. Their ratio is the
        achievable segmentation accuracy.
    """
    index = _distinct_groups(groups)
    sums = counts.new_zeros(int(index.max()) + 1, counts.shape[-1], dtype=torch.float64)
    sums.index_add_(0, index.flatten(), counts.double().flatten(0, 2))
    return sums.amax(-1).sum(), sums.sum()


def count_groups(groups: Tensor) -> int:
    """Groups that have a token, of all images together, from ``(B, H, W)``."""
    return len(_distinct_groups(groups).unique())


def pooling_groups(merge: Merge) -> Tensor | None:
    """The same number of groups by area pooling in the same windows.

    Each token goes to the nearest of centers that are spread evenly over its window; in a shifted
    window part by part, as a mask has to.

    Returns:
        ``(1, H, W)`` int64; None for a merge without windows, or of merged tokens.
    """
    if isinstance(merge, WindowMerge):
        windows, keep = merge.windows, merge.mask.count
    elif isinstance(merge, GridMerge) and merge.earlier is None:
        windows, keep = ShiftedWindows(merge.window), merge.u.shape[-1]
    else:
        return None
    centers = prior_centers(windows.size, keep, windows.shift)  # (P, 2)
    axis = torch.arange(windows.size) + 0.5
    tokens = torch.cartesian_prod(axis, axis)  # (N, 2)
    cut = windows.size - windows.shift
    apart = (tokens[:, None] >= cut) != (centers >= cut)  # (N, P, 2)
    distance = torch.cdist(tokens, centers.float()) + apart.any(-1) * 1e4
    first = torch.arange(prod(windows.counts(*merge.grid))) * keep
    group_index = (distance.argmin(-1) + first[:, None])[None, ..., None]  # (1, n, N, 1)
    return windows.join(group_index, *merge.grid).squeeze(-1).to(merge.tokens.device)


def _distinct_groups(groups: Tensor) -> Tensor:
    """Numbers of groups ``(B, H, W)`` that no two images share."""
    image = torch.arange(len(groups), device=groups.device).view(-1, 1, 1)
    return groups + image * (groups.max() + 1)

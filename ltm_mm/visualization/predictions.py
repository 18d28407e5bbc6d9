"""Where the predictions of a plain and a merging model differ."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..engine.predictions import Instances

SAME_IOU = 0.5  # boxes of one class that overlap this much are one object


@dataclass
class InstanceMatching:
    """Which instances two models have in common.

    Attributes:
        both: pairs (index in the plain model's, index in the merging model's instances).
        lost: indices of the plain model's instances that the merging model has not.
        new: indices of the merging model's instances that the plain model has not.
    """

    both: list[tuple[int, int]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)


def match_instances(plain: Instances, merged: Instances) -> InstanceMatching:
    """Pair off the instances of two models: one class, IoU >= 0.5, best score first."""
    overlap = _iou(plain.boxes, merged.boxes)
    overlap[plain.labels[:, None] != merged.labels[None, :]] = 0
    result, free = InstanceMatching(), set(range(len(merged)))
    for index in range(len(plain)):
        best = max(free, key=lambda j: overlap[index, j], default=None)
        if best is None or overlap[index, best] < SAME_IOU:
            result.lost.append(index)
        else:
            result.both.append((index, best))
            free.discard(best)
    result.new = sorted(free)
    return result


def _iou(a: NDArray, b: NDArray) -> NDArray:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``: ``(n, m)``."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (bottom_right - top_left).clip(min=0).prod(-1)
    sizes = [(x[:, 2:] - x[:, :2]).clip(min=0).prod(-1) for x in (a, b)]
    return both / np.maximum(sizes[0][:, None] + sizes[1][None, :] - both, 1e-9)


def class_name(names: Sequence[str] | None, index: int) -> str:
    """A class's name, or its number where names are unknown."""
    return names[index] if names and index < len(names) else f"class {index}"

"""Where the predictions of a plain and a merging model differ."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torchvision.ops import box_iou

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
    boxes = [torch.as_tensor(one.boxes) for one in (plain, merged)]
    overlap = box_iou(*boxes).nan_to_num().numpy()
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


def class_name(names: Sequence[str] | None, index: int) -> str:
    """A class's name, or its number where names are unknown."""
    return names[index] if names and index < len(names) else f"class {index}"

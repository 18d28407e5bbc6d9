"""Ground-truth classes of merged tokens, from what mmdet and mmseg put into a batch.

Pixels get a class from instance masks, else from boxes, else from a semantic map; a merged token
gets the class that most pixels of its tokens have.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor

from ...merging import Merge
from ...ops import full_precision

IGNORED = -1


def pixel_labels(
    samples: Sequence[BaseDataElement],
    size: tuple[int, int],
    num_classes: int,
    device: torch.device | str,
) -> Tensor:
    """Class of every pixel of a batch.

    Args:
        samples: with ``gt_instances`` (labels and masks or boxes; the background is class
            ``num_classes - 1``) or ``gt_sem_seg``.
        size: height and width of the batch's images in pixels.
        num_classes: K, background included.
        device: where the result lives.

    Returns:
        ``(B, H, W)`` int64, -1 for padding and for classes outside 0..K-1 (mmseg's 255).

    Raises:
        ValueError: if a sample has no ground truth of these kinds.
    """
    maps = torch.full((len(samples), *size), IGNORED, dtype=torch.long, device=device)
    for target, sample in zip(maps, samples, strict=True):
        if "gt_instances" in sample:
            height, width = sample.metainfo.get("img_shape", size)[:2]
            inside = target[:height, :width]
            inside.fill_(num_classes - 1)
            paint_instances(inside, sample.gt_instances, sample.gt_instances.labels)
        else:
            paste(target, _semantic(sample))
    return maps.masked_fill_(maps >= num_classes, IGNORED)


def segments(sample: BaseDataElement, size: tuple[int, int], device: torch.device | str) -> tuple:
    """Ground truth of a sample that is being tested, on the image as the network sees it.

    Test pipelines load annotations after resizing, so these have the original size (that of
    the maps or masks themselves, else ``ori_shape``) and are resized to ``img_shape`` here.

    Args:
        sample: as in :func:`pixel_labels`.
        size: height and width of the batch's images in pixels, padding included.
        device: where the result lives.

    Returns:
        Which segment each pixel belongs to ``(H, W)`` int64, -1 for padding: objects, numbered
        from 1 with 0 for the background, or classes of a semantic map; and the class of every
        segment (int64; None: the segments are the classes).

    Raises:
        ValueError: if the sample has no ground truth of these kinds.
    """
    classes = None
    if "gt_instances" in sample:
        instances = sample.gt_instances
        shape = sample.metainfo["ori_shape"][:2]
        if "masks" in instances:
            shape = _mask_tensor(instances.masks).shape[1:]
        pixels = torch.zeros(shape, dtype=torch.long)
        paint_instances(pixels, instances, torch.arange(1, len(instances) + 1))
        classes = instances.labels.to(device)
    else:
        pixels = _semantic(sample).long()
        pixels = pixels.masked_fill(pixels >= 255, IGNORED)  # mmseg's ignored pixels
    inner = sample.metainfo.get("img_shape", pixels.shape)[:2]
    resized = F.interpolate(pixels[None, None].double(), tuple(inner), mode="nearest-exact")
    target = torch.full(size, IGNORED, dtype=torch.long, device=device)
    paste(target, resized[0, 0].long())
    return target, classes


def paint_instances(target: Tensor, instances: BaseDataElement, values: Tensor) -> None:
    """Write each instance's value over its pixels, in place; smaller ones lie on top.

    Args:
        target: ``(H, W)`` int64.
        instances: with ``masks`` (mmdet's, ``(N, H', W')``) or ``bboxes`` (x1 y1 x2 y2).
        values: what to write ``(N,)`` int64.
    """
    if "masks" in instances:
        masks = _mask_tensor(instances.masks).to(target.device)[:, : len(target)]
        areas = masks.flatten(1).sum(1)
        for index in areas.argsort(descending=True).tolist():
            mask = masks[index, :, : target.shape[1]]
            target[: mask.shape[0], : mask.shape[1]][mask] = values[index]
        return
    boxes = instances.bboxes
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor  # mmdet's own box types
    sides = (boxes[:, 2:4] - boxes[:, :2]).clamp(min=0)
    for index in sides.prod(1).argsort(descending=True).tolist():
        x1, y1, x2, y2 = (max(round(v), 0) for v in boxes[index, :4].tolist())
        target[y1:y2, x1:x2] = values[index]


def _mask_tensor(masks: Any) -> Tensor:
    """``(N, H, W)`` bool of mmdet's bitmap or polygon masks, or of a tensor."""
    if isinstance(masks, Tensor):
        return masks.bool()
    return torch.from_numpy(np.ascontiguousarray(masks.to_ndarray())).bool()


def _semantic(sample: BaseDataElement) -> Tensor:
    """A semantic map ``(H, W)``: ``data`` in mmseg, ``sem_seg`` in mmdet."""
    if "gt_sem_seg" not in sample:
        raise ValueError(
            "labels of tokens need gt_instances or gt_sem_seg in every data sample, got "
            f"{sorted(sample.keys())}: load annotations in the pipeline"
        )
    sem_seg = sample.gt_sem_seg
    return (sem_seg.data if "data" in sem_seg else sem_seg.sem_seg).squeeze(0)


def paste(target: Tensor, source: Tensor) -> None:
    """Write a map into the top left of another, in place."""
    height, width = min(len(target), len(source)), min(target.shape[1], source.shape[1])
    target[:height, :width] = source[:height, :width].to(target)


def token_counts(pixels: Tensor, grid: tuple[int, int], pitch: float, num_classes: int) -> Tensor:
    """How many pixels of each class every token of a grid covers.

    Args:
        pixels: ``(B, H, W)`` int64, -1 for none.
        grid: tokens per column and row (h, w).
        pitch: pixels from one token to the next; the last tokens reach to the image's edge.
        num_classes: K.

    Returns:
        ``(B, h, w, K + 1)`` float; the last are the pixels without a class.
    """
    batch, *size = pixels.shape
    columns = num_classes + 1
    row, col = (
        ((torch.arange(n, device=pixels.device) + 0.5) / pitch).long().clamp(max=k - 1)
        for n, k in zip(size, grid, strict=True)
    )
    image = torch.arange(batch, device=pixels.device).view(-1, 1, 1)
    token = (image * grid[0] + row.view(1, -1, 1)) * grid[1] + col  # (B, H, W)
    index = token * columns + torch.where(pixels < 0, num_classes, pixels)
    counts = torch.bincount(index.flatten(), minlength=batch * grid[0] * grid[1] * columns)
    return counts.view(batch, *grid, columns).float()


def token_stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Pixels per token side.

    Args:
        size: height and width of the network's input, pixels.
        grid: tokens per column and row, ``ceil(size / stride)``.

    Returns:
        A power of two where one fits, which is what most backbones have.
    """
    powers = [2**k for k in range(16)]
    for stride in (*powers, *range(1, max(size) + 1)):
        if all(-(-n // stride) == k for n, k in zip(size, grid, strict=True)):
            return stride
    return max(-(-n // k) for n, k in zip(size, grid, strict=True))


def grid_counts(merge: Merge, pixels: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each class the tokens of a merge's grid cover.

    Args:
        merge: of a forward pass.
        pixels: classes of the images that went in ``(images, H', W')`` int64, -1 for none.
        num_classes: K.

    Returns:
        ``(B, H, W, K + 1)``, see :func:`token_counts`. B may be several grids per image, one
        after the other: MobileViT has one per place in a patch.
    """
    stride = token_stride((pixels.shape[1], pixels.shape[2]), merge.grid)
    counts = token_counts(pixels, merge.grid, stride, num_classes)
    return counts.repeat_interleave(len(merge.merged) // len(pixels), 0)


def merged_labels(merge: Merge, counts: Tensor) -> Tensor:
    """Classes of merged tokens: a token's pixels go to its groups as its row of U says.

    Args:
        merge: of a forward pass.
        counts: of :func:`grid_counts` ``(B, H, W, K + 1)``.

    Returns:
        ``(B, M)`` int64, see :func:`majority`.
    """
    with full_precision(counts):
        return majority(merge.share(counts))


def majority(counts: Tensor) -> Tensor:
    """Class that most pixels have: ``(..., K + 1)`` of :func:`token_counts` -> ``(...)`` int64.

    -1 where most have none, or there is no pixel at all (a group of padding); of classes that
    are equally frequent the first.
    """
    most, label = counts.max(-1)
    return label.masked_fill((label == counts.shape[-1] - 1) | (most == 0), IGNORED)

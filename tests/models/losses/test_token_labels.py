"""Classes of tokens from masks, boxes and semantic maps, against counting by hand."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from ltm_mm.models.losses.token_labels import (
    majority,
    pixel_labels,
    segments,
    token_counts,
    token_stride,
)

BACKGROUND = 3


def detection(shape: tuple[int, int] = (6, 6), **fields: object) -> DetDataSample:
    sample = DetDataSample(metainfo={"img_shape": shape})
    sample.gt_instances = InstanceData(**fields)
    return sample


def labels_of(sample: object, size: tuple[int, int] = (6, 8)) -> torch.Tensor:
    return pixel_labels([sample], size, BACKGROUND + 1, "cpu")[0]


def expected(*areas: tuple[slice, slice, int], shape: tuple[int, int] = (6, 6)) -> torch.Tensor:
    out = torch.full((6, 8), -1)
    out[: shape[0], : shape[1]] = BACKGROUND
    for rows, cols, label in areas:
        out[rows, cols] = label
    return out


def test_masks_small_over_large_and_padding_ignored() -> None:
    masks = np.zeros((2, 6, 6), np.uint8)
    masks[0, 2:4, 2:4] = 1  # the smaller one comes first, and still lies on top
    masks[1, 0:5, 1:5] = 1
    found = labels_of(detection(masks=BitmapMasks(masks, 6, 6), labels=torch.tensor([0, 2])))
    big, small = (slice(0, 5), slice(1, 5), 2), (slice(2, 4), slice(2, 4), 0)
    assert_close(found, expected(big, small))


def test_masks_padded_to_the_batch() -> None:
    masks = np.zeros((1, 6, 8), np.uint8)
    masks[0, 0:2, 0:8] = 1  # beyond the image: padding stays ignored
    found = labels_of(detection(masks=BitmapMasks(masks, 6, 8), labels=torch.tensor([1])))
    assert_close(found, expected((slice(0, 2), slice(0, 6), 1)))


def test_polygons() -> None:
    square = np.array([1, 1, 4, 1, 4, 4, 1, 4], float)
    sample = detection(masks=PolygonMasks([[square]], 6, 6), labels=torch.tensor([1]))
    assert_close(labels_of(sample), expected((slice(1, 4), slice(1, 4), 1)))


@pytest.mark.parametrize("wrap", [torch.Tensor, HorizontalBoxes])
def test_boxes(wrap: type) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 4.0], [1.2, 1.0, 3.0, 2.6]])
    sample = detection(bboxes=wrap(boxes), labels=torch.tensor([2, 1]))
    big, small = (slice(0, 4), slice(0, 5), 2), (slice(1, 3), slice(1, 3), 1)
    assert_close(labels_of(sample), expected(big, small))


def test_no_instances() -> None:
    sample = detection(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    assert_close(labels_of(sample), expected())


def test_semantic_map() -> None:
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.tensor([[[0, 2, 255], [1, 9, 3]]])))
    found = pixel_labels([sample], (2, 3), 4, "cpu")
    assert_close(found, torch.tensor([[[0, 2, -1], [1, -1, 3]]]))


def test_without_ground_truth() -> None:
    with pytest.raises(ValueError, match="need gt_instances or gt_sem_seg"):
        labels_of(SegDataSample())


def test_segments_of_a_test_image_are_resized_with_it() -> None:
    """Original 3 x 3, seen as 6 x 6, padded to 6 x 8."""
    masks = np.zeros((2, 3, 3), np.uint8)
    masks[0, 1, 1], masks[1, :2, :2] = 1, 1
    for ground_truth in (
        {"masks": BitmapMasks(masks, 3, 3)},
        {"bboxes": torch.tensor([[1.0, 1, 2, 2], [0, 0, 2, 2]])},
    ):
        sample = detection(labels=torch.tensor([2, 0]), **ground_truth)
        sample.set_metainfo({"ori_shape": (3, 3)})
        labels, classes = segments(sample, (6, 8), "cpu")
        small = torch.tensor([[2, 2, 0], [2, 1, 0], [0, 0, 0]])
        assert_close(labels[:, :6], small.repeat_interleave(2, 0).repeat_interleave(2, 1))
        assert (labels[:, 6:] == -1).all()
        assert_close(classes, torch.tensor([2, 0]))


def test_segments_of_a_semantic_map() -> None:
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.tensor([[[0, 255], [3, 1]]])))
    found, classes = segments(sample, (2, 3), "cpu")
    assert classes is None
    assert_close(found, torch.tensor([[0, -1, -1], [3, 1, -1]]))


def slow_counts(pixels, grid, pitch, num_classes):
    """One pixel at a time: its centre lies in one token."""
    out = torch.zeros(len(pixels), *grid, num_classes + 1)
    for b, image in enumerate(pixels):
        for y in range(image.shape[0]):
            for x in range(image.shape[1]):
                row, col = (
                    min(int((at + 0.5) / pitch), k - 1) for at, k in zip((y, x), grid, strict=True)
                )
                out[b, row, col, int(image[y, x])] += 1  # -1 is the last
    return out


@pytest.mark.parametrize(
    ("size", "grid"), [((28, 28), (7, 7)), ((30, 17), (8, 5)), ((9, 9), (2, 2))]
)
def test_counts_and_majority(size: tuple[int, int], grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(-1, 3, (2, *size))
    pixels[0, :4, :4] = -1  # a token without any
    pixels[1, :4, :4] = 2
    of_tokens = token_counts(pixels, grid, 4, 3)
    assert_close(of_tokens, slow_counts(pixels, grid, 4, 3))
    labels = majority(of_tokens)
    assert labels[:, 0, 0].tolist() == [-1, 2]
    for counts, label in zip(of_tokens.flatten(0, 2), labels.flatten(), strict=True):
        best = counts.tolist().index(max(counts))
        assert label == (best if best < 3 else -1)


def test_majority_of_no_pixel_at_all() -> None:
    counts = torch.tensor([[0.0, 0, 0], [0, 2, 1], [1, 0, 2], [1, 1, 0]])
    assert majority(counts).tolist() == [-1, 1, -1, 0]


@pytest.mark.parametrize(
    ("size", "grid", "stride"),
    [
        ((224, 224), (14, 14), 16),
        ((150, 170), (38, 43), 4),
        ((150, 170), (5, 6), 32),  # 29 to 33 would do, too
        ((140, 154), (10, 11), 14),
        ((7, 5), (7, 5), 1),
        ((30, 30), (4, 9), 8),  # no stride has this grid: the shorter side tells
    ],
)
def test_stride(size: tuple[int, int], grid: tuple[int, int], stride: int) -> None:
    assert token_stride(size, grid) == stride

"""NMS of the fallback against loops over boxes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("stand_in")


def random_boxes(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 20
    size = torch.rand(n, 2, generator=generator) * 15
    boxes = torch.cat((corner, corner + size), dim=1)
    boxes[1::2] = boxes[::2] + 0.3 * torch.rand(n // 2, 4, generator=generator)  # near twins
    return boxes, torch.rand(n, generator=generator)


def iou(a: list[float], b: list[float], offset: int) -> float:
    def area(box: list[float]) -> float:
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    shared = width * height
    return shared / (area(a) + area(b) - shared)


def nms_loop(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    rows = boxes.double().tolist()
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(rows[i], rows[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft_nms_loop(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, low: float, method: str, off: int
) -> tuple[list[int], list[float]]:
    rows = boxes.double().tolist()
    rest = dict(enumerate(scores.double().tolist()))
    kept, values = [], []
    while rest:
        best = max(rest, key=rest.__getitem__)
        kept.append(best)
        values.append(rest.pop(best))
        for i in list(rest):
            overlap = iou(rows[best], rows[i], off)
            if method == "gaussian":
                rest[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                rest[i] *= 1 - overlap if method == "linear" else 0
            if rest[i] < low:
                del rest[i]
    return kept, values


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_nms_equals_loop(threshold: float, offset: int, device: str) -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(80)
    expected = nms_loop(boxes, scores, threshold, offset)
    assert 1 < len(expected) < 80
    dets, kept = nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets.cpu(), torch.cat((boxes, scores[:, None]), 1)[expected])


def test_offset_changes_what_is_kept() -> None:
    boxes, scores = random_boxes(80)
    assert nms_loop(boxes, scores, 0.3, 0) != nms_loop(boxes, scores, 0.3, 1)


def test_score_threshold_and_max_num() -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(80)
    good = torch.nonzero(scores > 0.4)[:, 0]
    expected = good[nms_loop(boxes[good], scores[good], 0.3, 0)].tolist()
    _, kept = nms(boxes, scores, 0.3, score_threshold=0.4, max_num=5)
    assert len(expected) > 5
    assert kept.tolist() == expected[:5]


@pytest.mark.parametrize("split_thr", [10000, 10], ids=["shifted", "per class"])
def test_batched_nms_is_nms_per_class(split_thr: int) -> None:
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(80)
    classes = torch.arange(80) % 3
    expected = []
    for label in range(3):
        of_class = torch.nonzero(classes == label)[:, 0]
        expected += of_class[nms_loop(boxes[of_class], scores[of_class], 0.3, 0)].tolist()
    expected.sort(key=lambda i: -scores[i].item())
    config = {"type": "nms", "iou_threshold": 0.3, "split_thr": split_thr}
    dets, kept = batched_nms(boxes, scores, classes, config)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets, torch.cat((boxes, scores[:, None]), 1)[expected])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_equals_loop(method: str, offset: int) -> None:
    from mmcv.ops import soft_nms

    boxes, scores = random_boxes(60)
    expected, values = soft_nms_loop(boxes, scores, 0.3, 0.5, 0.2, method, offset)
    assert 1 < len(expected) < 60
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.2, method, offset)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets[:, :4], boxes[expected])
    torch.testing.assert_close(dets[:, 4], torch.tensor(values), rtol=1e-5, atol=1e-5)


def test_soft_nms_keeps_boxes_without_area() -> None:
    """mmcv's own example: the overlap of such boxes is 0 / 0, which lowers no score."""
    from mmcv.ops import soft_nms

    boxes = np.array([[4, 3, 5, 3], [4, 3, 5, 4]] + [[3, 1, 3, 1]] * 4, dtype=np.float32)
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], dtype=np.float32)
    dets, kept = soft_nms(boxes, scores, 0.6, sigma=0.5)
    assert sorted(kept.tolist()) == [0, 1, 2, 3, 4]
    assert dets.shape == (5, 5)


def test_no_boxes() -> None:
    from mmcv.ops import nms, soft_nms

    for function in (nms, soft_nms):
        dets, kept = function(torch.zeros(0, 4), torch.zeros(0), 0.5)
        assert dets.shape == (0, 5)
        assert kept.dtype == torch.long
        assert kept.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(40)
    boxes, scores = boxes.to(dtype), scores.argsort().argsort().to(dtype)  # distinct in 8 bits
    dets, kept = nms(boxes, scores, 0.3)
    assert dets.dtype == dtype
    assert kept.tolist() == nms_loop(boxes.float(), scores.float(), 0.3, 0)

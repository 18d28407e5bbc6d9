"""Outlines of squares, counted by hand; the metrics on real mmdet and mmseg structures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_masks
from torch.testing import assert_close

from ltm_mm.datasets.shapes import encode_rle
from ltm_mm.evaluation.boundaries import (
    boundary_hits,
    boundary_iou,
    boundary_width,
    inner_boundary,
)
from ltm_mm.registry import METRICS


def square(top: int, left: int, side: int, size: int = 30) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


TEN, TWELVE = square(5, 5, 10), square(4, 4, 12)  # the second dilated by one pixel


def test_inner_boundary() -> None:
    assert inner_boundary(TEN, 1).sum() == 4 * 9
    assert inner_boundary(TEN, 2).sum() == 100 - 36
    assert inner_boundary(TEN, 5).sum() == 100
    corner = square(0, 0, 10)
    assert inner_boundary(corner, 1).sum() == 36
    assert inner_boundary(corner, 1, image_edge=False).sum() == 19


def test_boundary_iou_by_hand() -> None:
    assert boundary_iou(TEN, TEN, 2) == 1
    assert boundary_iou(TEN, TWELVE, 1) == 0  # rings of 36 and 44 pixels side by side
    # Two pixels wide: 64 and 80 pixels, which share the smaller square's outer ring of 36.
    assert boundary_iou(TEN, TWELVE, 2) == pytest.approx(36 / (64 + 80 - 36))
    assert boundary_iou(TEN, square(18, 18, 10), 2) == 0
    nothing = np.zeros_like(TEN)
    assert boundary_iou(nothing, nothing, 2) == 1
    assert boundary_iou(nothing, TEN, 2) == 0


def test_wide_boundaries_are_the_masks() -> None:
    overlap = (TEN & TWELVE).sum() / (TEN | TWELVE).sum()
    assert boundary_iou(TEN, TWELVE, 15) == pytest.approx(overlap)


def test_boundary_hits_by_hand() -> None:
    assert boundary_hits(TEN, TEN, 0).tolist() == [36, 36, 36, 36]
    assert boundary_hits(TWELVE, TEN, 0).tolist() == [44, 0, 36, 0]
    # Within one pixel (up, down, left, right): all but the larger one's corners.
    assert boundary_hits(TWELVE, TEN, 1).tolist() == [44, 40, 36, 36]
    assert boundary_hits(TWELVE, TEN, 2).tolist() == [44, 44, 36, 36]
    valid = np.ones_like(TEN)
    valid[:5] = False
    # The larger one's top row is gone, and with it what the smaller one's was near to.
    assert boundary_hits(TWELVE, TEN, 1, valid).tolist() == [44 - 12, 40 - 10, 36, 36 - 8]


def test_width() -> None:
    assert boundary_width(300, 400, 0.02) == 10
    assert boundary_width(3, 4, 0.02) == 1


def semantic(predicted: np.ndarray, truth: np.ndarray) -> dict:
    return {
        "pred_sem_seg": {"data": torch.from_numpy(predicted.astype(np.int64))[None]},
        "gt_sem_seg": {"data": torch.from_numpy(truth.astype(np.int64))[None]},
    }


def evaluate(metric: object, samples: list[dict], classes: tuple[str, ...]) -> dict:
    metric.dataset_meta = {"classes": classes}
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_boundary_f() -> None:
    def f(**options: object) -> float:
        metric = METRICS.build({"type": "ltm_mm.BoundaryF", **options})
        found = evaluate(metric, [semantic(TWELVE, TEN), semantic(TEN, TEN)], ("back", "it", "no"))
        return found["mBoundaryF"]

    assert f(tolerance=0.05) == pytest.approx(100)  # 2 pixels of 30 x 30
    # 1 pixel: the background's outline is what surrounds each square.
    hits = [sum(boundary_hits(p == c, c == TEN, 1) for p in (TWELVE, TEN)) for c in (False, True)]
    values = [2 * (h[1] / h[0]) * (h[3] / h[2]) / (h[1] / h[0] + h[3] / h[2]) for h in hits]
    assert f() == pytest.approx(100 * np.mean(values))
    assert f() < 100


def test_boundary_f_ignores_what_has_no_label() -> None:
    truth = TEN.astype(int)
    truth[:, 15:] = 255
    wrong_there = TEN.astype(int)
    wrong_there[:, 16:] = 2
    metric = METRICS.build({"type": "ltm_mm.BoundaryF"})
    found = evaluate(metric, [semantic(wrong_there, truth)], ("back", "it", "no"))
    assert found["mBoundaryF"] == pytest.approx(100)
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        METRICS.build({"type": "ltm_mm.BoundaryF", "tolerance": 0})


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    """Two images of two classes: a small and a larger square, and one more."""
    masks = [(1, 1, square(5, 5, 10)), (1, 2, square(20, 20, 8)), (2, 1, square(0, 0, 30))]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 30} for i in (1, 2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {
                "id": k,
                "image_id": image,
                "category_id": category,
                "segmentation": encode_rle(mask),
                "area": area,
                "bbox": [0, 0, 1, 1],
                "iscrowd": 0,
            }
            for k, ((image, category, mask), area) in enumerate(
                zip(masks, (100, 64, 2000), strict=True), 1
            )
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return str(tmp_path / "annotations.json")


def prediction(image: int, *objects: tuple[int, float, np.ndarray]) -> dict:
    labels, scores, masks = zip(*objects, strict=True) if objects else ((), (), ())
    stacked = np.stack(masks) if masks else np.zeros((0, 30, 30), bool)
    return {
        "img_id": image,
        "ori_shape": (30, 30),
        "pred_instances": {
            "bboxes": torch.zeros(len(labels), 4),
            "labels": torch.tensor(labels, dtype=torch.long),
            "scores": torch.tensor(scores),
            "masks": torch.from_numpy(stacked),
        },
    }


def test_boundary_iou_metric(annotations: str) -> None:
    init_default_scope("mmdet")
    options = {"type": "ltm_mm.BoundaryIoU", "ann_file": annotations, "width": 2 / 42.43}
    samples = [
        prediction(
            1,
            (0, 0.9, square(6, 6, 5)),  # overlaps less
            (0, 0.8, TWELVE),
            (1, 0.1, square(20, 20, 8)),  # right, but not sure enough
            (0, 0.9, square(20, 20, 8)),  # of the other class
        ),
        prediction(2, (0, 0.5, square(0, 0, 30))),
    ]
    found = evaluate(METRICS.build(options), samples, ("a", "b"))
    first = 36 / 108
    expected = {"mIoU": (first + 0 + 1) / 3, "mIoU_s": first / 2, "mIoU_m": 1.0, "mIoU_l": -1.0}
    assert found == pytest.approx({f"boundary/{k}": v for k, v in expected.items()})
    sure = evaluate(METRICS.build({**options, "score_thr": 0.05}), samples, ("a", "b"))
    assert sure["boundary/mIoU_s"] == pytest.approx((first + 1) / 2)
    wide = evaluate(METRICS.build({**options, "width": 1.0}), samples, ("a", "b"))
    assert wide["boundary/mIoU_s"] == pytest.approx(100 / 144 / 2)
    none = evaluate(METRICS.build(options), [prediction(1), prediction(2)], ("a", "b"))
    assert none["boundary/mIoU"] == 0
    for wrong in ({"width": 0.0}, {"score_thr": 1.0}):
        with pytest.raises(ValueError, match="must"):
            METRICS.build({**options, **wrong})


def test_rle_of_the_tests_is_cocos() -> None:
    coded = coco_masks.frPyObjects(encode_rle(TEN), 30, 30)
    assert_close(coco_masks.decode(coded).astype(bool), TEN)

"""Figures per class are those of pycocotools and mmseg, and confusions are counted right."""

import contextlib
import io

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ltm_mm.evaluation.by_class import detections_by_class, labels_by_class

CLASSES = ("cat", "dog", "bird")


def evaluated(truth: list[tuple], found: list[tuple]) -> COCOeval:
    """pycocotools' evaluation of boxes (image, class, box) and (image, class, box, score)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            info={},
            images=[dict(id=k, width=100, height=100) for k in range(2)],
            categories=[dict(id=10 + k, name=name) for k, name in enumerate(CLASSES)],
            annotations=[
                dict(
                    id=n, image_id=i, category_id=10 + c, bbox=box, area=box[2] * box[3], iscrowd=0
                )
                for n, (i, c, box) in enumerate(truth, 1)
            ],
        )
        coco.createIndex()
        results = [
            dict(image_id=i, category_id=10 + c, bbox=box, score=score)
            for i, c, box, score in found
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


HERE, THERE, AWAY = [10, 10, 20, 20], [50, 50, 30, 30], [80, 0, 10, 10]
TRUTH = [(0, 0, HERE), (0, 1, THERE), (1, 1, HERE), (1, 0, THERE)]


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        # all right
        ([(i, c, box, 0.9) for i, c, box in TRUTH], {(0, 0): 2, (1, 1): 2}),
        # one of another class, one where nothing is, two not found
        (
            [(0, 1, HERE, 0.9), (0, 1, THERE, 0.8), (1, 2, AWAY, 0.7)],
            {(0, 1): 1, (1, 1): 1, (1, 3): 1, (0, 3): 1, (3, 2): 1},
        ),
        # below the score that counts
        ([(0, 0, HERE, 0.1)], {(0, 3): 2, (1, 3): 2}),
        # two on one object: the second one is on nothing
        (
            [(i, c, box, 0.9) for i, c, box in TRUTH] + [(0, 0, HERE, 0.5)],
            {(0, 0): 2, (1, 1): 2, (3, 0): 1},
        ),
    ],
)
def test_confusions_of_a_detector(found: list[tuple], counts: dict) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        by_class = detections_by_class({"bbox": evaluated(TRUTH, found)}, CLASSES)
    expected = np.zeros((4, 4), int)
    for place, count in counts.items():
        expected[place] = count
    np.testing.assert_array_equal(by_class["confusion"], expected)
    assert by_class["objects"] == [2, 2, 0]


def test_ap_is_pycocotools_own() -> None:
    found = [(0, 0, HERE, 0.9), (1, 0, HERE, 0.8), (0, 1, THERE, 0.7), (1, 1, HERE, 0.6)]
    evaluation = evaluated(TRUTH, found)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.params.maxDets = [1, 10, 100]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        by_class = detections_by_class({"bbox": evaluation}, CLASSES)
    ap = by_class["ap"]["bbox"]
    assert ap[2] is None  # there is no bird
    assert np.mean(ap[:2]) == pytest.approx(evaluation.stats[0], abs=1e-4)
    assert np.mean(by_class["ap50"]["bbox"][:2]) == pytest.approx(evaluation.stats[1], abs=1e-4)
    curve = by_class["precision"]["bbox"]
    assert [len(curve[0]), len(by_class["recall"]), curve[2]] == [101, 101, None]
    assert np.mean(curve[0]) == pytest.approx(by_class["ap50"]["bbox"][0], abs=1e-4)


def test_iou_is_mmsegs_own() -> None:
    true, predicted = torch.randint(0, 3, (2, 4, 50, 50))
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = dict(classes=CLASSES)
    for a, b in zip(predicted, true, strict=True):
        sample = dict(pred_sem_seg=dict(data=a[None]), gt_sem_seg=dict(data=b[None]))
        metric.process({}, [sample])
    expected = metric.evaluate(4)
    confusion = torch.bincount(true.flatten() * 3 + predicted.flatten(), minlength=9).view(3, 3)
    by_class = labels_by_class(confusion.numpy(), CLASSES)
    assert np.mean(by_class["iou"]) == pytest.approx(expected["mIoU"], abs=0.01)
    assert np.mean(by_class["accuracy"]) == pytest.approx(expected["mAcc"], abs=0.01)


def test_a_class_without_pixels_has_no_figure() -> None:
    by_class = labels_by_class(np.array([[4, 1, 0], [0, 5, 0], [0, 0, 0]]), CLASSES)
    assert by_class["iou"] == [80.0, pytest.approx(100 * 5 / 6, abs=1e-3), None]
    assert by_class["accuracy"] == [80.0, 100.0, None]

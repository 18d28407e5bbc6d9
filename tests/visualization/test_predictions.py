"""Reading, comparing and drawing predictions."""

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from ltm_mm.engine.predictions import Instances, read_prediction
from ltm_mm.visualization.comparison import class_colours, comparison_figure
from ltm_mm.visualization.figures import CLASSES, pixels_of
from ltm_mm.visualization.predictions import match_instances


def instances(*rows: tuple[float, float, float, float, int, float]) -> Instances:
    """Instances of rows x1, y1, x2, y2, class, score, whose masks fill their boxes."""
    table = np.array(rows, float).reshape(-1, 6)
    masks = np.zeros((len(rows), 40, 60), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, table[:, :4].astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(table[:, :4], table[:, 4].astype(int), table[:, 5], masks)


@pytest.mark.parametrize(
    ("plain", "merged", "both", "lost", "new"),
    [
        ([], [], [], [], []),
        ([(0, 0, 10, 10, 0, 0.9)], [], [], [0], []),
        ([], [(0, 0, 10, 10, 0, 0.9)], [], [], [0]),
        ([(0, 0, 10, 10, 0, 0.9)], [(0, 0, 10, 9, 0, 0.4)], [(0, 0)], [], []),
        # another class; IoU exactly one half; just below it
        ([(0, 0, 10, 10, 0, 0.9)], [(0, 0, 10, 10, 1, 0.9)], [], [0], [0]),
        ([(0, 0, 10, 10, 0, 0.9)], [(0, 0, 10, 5, 0, 0.9)], [(0, 0)], [], []),
        ([(0, 0, 100, 10, 0, 0.9)], [(0, 0, 49, 10, 0, 0.9)], [], [0], [0]),
        # each is matched once, the best score first
        (
            [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 9, 0, 0.8)],
            [(0, 0, 10, 10, 0, 0.7)],
            [(0, 0)],
            [1],
            [],
        ),
    ],
)
def test_instances_are_paired(plain: list, merged: list, both: list, lost: list, new: list) -> None:
    difference = match_instances(instances(*plain), instances(*merged))
    assert (difference.both, difference.lost, difference.new) == (both, lost, new)


def test_read_instances_above_the_score() -> None:
    found = InstanceData(
        bboxes=torch.arange(12.0).reshape(3, 4),
        labels=torch.tensor([2, 0, 1]),
        scores=torch.tensor([0.31, 0.1, 0.8]),
        masks=torch.zeros(3, 4, 5, dtype=torch.bool),
    )
    read = read_prediction(BaseDataElement(pred_instances=found), 0.3)
    assert read.labels.tolist() == [1, 2]
    assert read.boxes.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert read.masks.shape == (2, 4, 5)


def test_read_label_maps() -> None:
    labels = torch.tensor([[[0, 1], [2, 1]]])
    sample = BaseDataElement(pred_sem_seg=PixelData(data=labels))
    np.testing.assert_array_equal(read_prediction(sample), labels[0])
    panoptic = BaseDataElement(pred_panoptic_seg=PixelData(sem_seg=labels + 3000))
    np.testing.assert_array_equal(read_prediction(panoptic), labels[0])


def test_read_something_else() -> None:
    sample = BaseDataElement(pred_depth_map=torch.zeros(1))
    with pytest.raises(ValueError, match="pred_depth_map cannot be drawn"):
        read_prediction(sample)


def test_colours_stay_with_their_classes_where_they_suffice() -> None:
    maps = [np.array([[3, 3], [3, 1]])]
    assert class_colours(maps, ["a", "b", "c", "d"]) == {3: CLASSES[3], 1: CLASSES[1]}
    assert class_colours(maps, ["a", "background", "c", "d"]) == {3: CLASSES[3]}  # shows the photo
    assert class_colours(maps, ["x"] * 150) == {3: CLASSES[0], 1: CLASSES[1]}
    assert len(set(CLASSES)) == len(CLASSES)


IMAGE = np.full((40, 60, 3), 200, np.uint8)


def test_figure_of_instances_counts_and_marks_differences() -> None:
    plain = instances((2, 2, 20, 20, 0, 0.9), (30, 5, 50, 30, 1, 0.8))
    merged = instances((2, 2, 20, 16, 0, 0.9), (40, 25, 55, 39, 1, 0.5))
    figure = comparison_figure(IMAGE, plain, merged, ["date", "fig"], "note")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "plain: 2 objects",
        "merged: 2 objects",
        "1 alike, 1 only plain, 1 only merged",
    ]
    texts = [{text.get_text() for text in axis.texts} for axis in figure.axes]
    assert texts == [{"date 0.90", "fig 0.80"}, {"date 0.90", "fig 0.50"}, {"− fig", "+ fig"}]
    third = figure.axes[2].images[0].get_array()
    changed = (third != third[0, 0]).any(-1)
    expected = np.zeros((40, 60), bool)
    expected[16:20, 2:20] = True  # where the masks of the common object differ
    np.testing.assert_array_equal(changed, expected)
    assert pixels_of(figure).std() > 0


def test_boxes_lie_on_the_edges_of_pixels() -> None:
    figure = comparison_figure(IMAGE, instances((2, 3, 20, 21, 0, 0.9)), instances())
    (box,) = figure.axes[0].patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (1.5, 2.5, 18, 18)


def test_figure_of_label_maps_marks_the_pixels_that_differ() -> None:
    plain = np.zeros((40, 60), int)
    plain[:, 30:] = 1
    merged = plain.copy()
    merged[:10, 30:36] = 0
    figure = comparison_figure(IMAGE, plain, merged, ["road", "sky"])
    assert figure.axes[2].get_title() == "2.50% of the pixels differ"
    third = figure.axes[2].images[0].get_array()
    np.testing.assert_array_equal((third != third[39, 0]).any(-1), plain != merged)
    assert {t.get_text() for t in figure.axes[0].texts} == {"road", "sky"}
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["road", "sky"]

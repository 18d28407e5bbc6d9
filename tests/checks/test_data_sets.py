"""Detectors' data sets that would train to a wrong result, or end in a traceback, in one line.

Every row damages one file or option and goes through the door of the tools.
"""

import argparse
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from PIL import Image
from pycocotools.mask import encode

from ltm_mm.arguments import ConfigOptions
from ltm_mm.checks.coco import summarize
from ltm_mm.checks.instances import check_object_counts
from ltm_mm.checks.loaders import check_names
from ltm_mm.checks.masks import BAD_MASK, _decoded, mask_fault
from ltm_mm.datasets import SHAPES
from ltm_mm.engine import train
from ltm_mm.errors import UserError
from tests.engine.conftest import SHAPES_CONFIG, line_of

Options = Callable[..., dict[str, object]]
Content = dict[str, list[dict]]
CLASSES = tuple(SHAPES)
TURNED = CLASSES[::-1]


@pytest.fixture
def shapes_copy(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the shapes data set that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def coco_options(options: Options, root: Path, classes: tuple[str, ...] = CLASSES) -> dict:
    """As a user's own COCO-format data set, which nothing draws when it is missing."""
    changes = options(root)
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.type"] = "CocoDataset"
        changes[f"{part}_dataloader.dataset.metainfo"] = {"classes": classes}
    return changes


def edit(root: Path, split: str, change: Callable[[Content], object]) -> None:
    """Change the content of an annotation file."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def each(**values: object) -> Callable[[Content], None]:
    """Set values in all annotations."""
    return lambda content: [a.update(values) for a in content["annotations"]] and None


def edit_first(**values: object) -> Callable[[Content], None]:
    """Set values in the first annotation."""
    return lambda content: content["annotations"][0].update(values)


def without(key: str, count: int | None = None) -> Callable[[Content], None]:
    """Take a key out of the first annotations, or of all."""
    return lambda content: [a.pop(key) for a in content["annotations"][:count]] and None


def turn_categories(content: Content) -> None:
    content["categories"].reverse()


def two_of_a_name(content: Content) -> None:
    content["categories"].append({"id": 99, "name": CLASSES[2]})


def two_images_of_an_id(content: Content) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


def two_categories_of_an_id(content: Content) -> None:
    content["categories"][1]["id"] = content["categories"][0]["id"]


def two_annotations_of_an_id(content: Content) -> None:
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def text_ids(content: Content) -> None:
    for a in content["annotations"]:
        a["image_id"] = str(a["image_id"])


def categories_from_zero(content: Content) -> None:
    for a in content["annotations"]:
        a["category_id"] += 100


def corners(content: Content) -> None:
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w + 160, y + h + 160]


def shares(content: Content) -> None:
    for a in content["annotations"]:
        a["bbox"] = [value / 256 for value in a["bbox"]]


def flat_polygon(content: Content) -> None:
    content["annotations"][0]["segmentation"] = [1, 1, 20, 1, 20, 20]


def no_objects(content: Content) -> None:
    content["annotations"] = []


def other_mask_size(content: Content) -> None:
    content["annotations"][0]["segmentation"]["size"] = [8, 8]


def rle(counts: object, size: object = (160, 160)) -> Callable[[Content], None]:
    """Set the first annotation's mask."""
    return edit_first(segmentation={"counts": counts, "size": size})


def content(text: str) -> Callable[[Path], None]:
    """Replace the annotation file's text."""

    def write(root: Path) -> None:
        (root / "annotations" / "instances_train.json").write_text(text)

    return write


@pytest.mark.parametrize(
    ("split", "change", "expected"),
    [
        ("train", turn_categories, "in the order cross, ring, star, triangle, square, ..., train_"),
        ("val", turn_categories, "mmdet numbers labels in the file's order, so names would be"),
        ("train", two_of_a_name, "the categories 3, 99 have one name, triangle"),
        ("train", two_images_of_an_id, "two of its images have the id 1, '000000.png' and '000001"),
        ("val", two_images_of_an_id, "two of its images have the id 1, '000000.png' and '000001"),
        ("train", two_categories_of_an_id, "two of its categories have the id 1, 'circle' and 'sq"),
        ("train", two_annotations_of_an_id, "two annotations have the id 1; ids must differ"),
        ("train", without("segmentation", 1), "1 of {n} annotations have no 'segmentation', first"),
        (
            "train",
            edit_first(segmentation=[]),
            "1 of {n} annotations have no 'segmentation', first ann",
        ),
        ("train", without("segmentation"), "{n} of {n} annotations have no 'segmentation', first"),
        ("val", without("segmentation", 1), "annotations have no 'segmentation', first annotation"),
        (
            "val",
            edit_first(segmentation=[]),
            "val_dataloader.dataset.pipeline loads masks: take them out, or measure boxes a",
        ),
        *(
            (
                "train",
                edit_first(segmentation=[[10, 10, odd, 20, 20, 30]]),
                "neither a list of polygons",
            )
            for odd in (float("nan"), float("inf"), 1e12, "20", [20, 20], None)
        ),
        *(
            (
                "val",
                edit_first(iscrowd=odd),
                "1 of {n} annotations have an 'iscrowd' that is neither 0 n",
            )
            for odd in ("0", None, 2, [])
        ),
        ("train", flat_polygon, "neither a list of polygons [[x, y, x, y, x, y, ...], ...]"),
        (
            "train",
            edit_first(segmentation=[[1, 2, 3, 4]]),
            "neither a list of polygons [[x, y, x, y,",
        ),
        ("train", other_mask_size, "nor a run-length code of the image's height and width, first"),
        ("train", rle("0"), "1 of {n} annotations have a 'segmentation' that is neither a list of"),
        ("val", rle("0"), "1 of {n} annotations have a 'segmentation' that is neither a list of"),
        ("train", rle("garbage!!"), "nor a run-length code of the image's height and width, first"),
        ("train", rle([160 * 160, "0"]), "nor a run-length code of the image's height and width,"),
        ("train", rle([160 * 160 + 1, -1]), "nor a run-length code of the image's height and wid"),
        ("train", rle([160 * 160], size=160), "nor a run-length code of the image's height and w"),
        ("train", rle([160 * 160]), "1 of {n} annotations have a run-length code without a pixel"),
        ("val", rle("PPi0"), "1 of {n} annotations have a run-length code without a pixel as 'se"),
        ("val", without("iscrowd", 1), "annotations lack 'iscrowd', which COCO's metrics need (0"),
        (
            "train",
            edit_first(bbox=[3, 4]),
            "annotations have a 'bbox' that is not four numbers: x, y,",
        ),
        ("val", edit_first(bbox=[3, 4]), "first annotation 1 of image 1 (000000.png)"),
        (
            "train",
            edit_first(bbox=["1", "2", "3", "4"]),
            "have a 'bbox' that is not four numbers: x, y",
        ),
        ("train", without("bbox", 1), "1 of {n} annotations lack 'bbox', first annotation 1 of im"),
        ("train", without("area", 1), "1 of {n} annotations lack 'area', first annotation 1 of im"),
        ("train", edit_first(area=None), "1 of {n} annotations have an 'area' that is no number"),
        ("train", without("image_id", 1), "1 of {n} annotations lack 'image_id', first annotation"),
        ("train", without("category_id", 1), "1 of {n} annotations lack 'category_id', first anno"),
        ("train", each(iscrowd=1), "all {n} are crowds (iscrowd=1), which do not train"),
        ("val", each(iscrowd=1), "all {n} are crowds (iscrowd=1), which do not count"),
        ("val", no_objects, "has no instance of the classes that counts, so metrics would be -1"),
        ("train", text_ids, "{n} of {n} annotations are of an image that the file does not list"),
        ("val", text_ids, "{n} of {n} annotations are of an image that the file does not list"),
        ("train", categories_from_zero, "are of a category that the file does not list"),
        ("train", corners, "a box that reaches more than 2 pixels beyond its image"),
        ("train", shares, "are left out by mmdet (box smaller than a pixel or outside of its"),
        ("train", each(area=0), "outside of its image, or area 0), first annotation 1"),
        (
            "train",
            edit_first(image_id=[1]),
            "1 of {n} annotations have an id that is neither a number n",
        ),
        (
            "train",
            edit_first(segmentation=[["1"] * 6]),
            "three points or more, nor a run-length code of",
        ),
        (
            "train",
            edit_first(segmentation={"size": [160, 160], "counts": [5, 3]}),
            "nor a run-length co",
        ),
        ("train", lambda c: c["images"][0].pop("width"), "an entry of 'images' lacks 'width'"),
        ("train", lambda c: c["images"][0].update(width=0), "has the width 0 and height 160: give"),
        ("train", lambda c: c["images"][0].pop("file_name"), "an entry of 'images' lacks 'file_n"),
        (
            "train",
            lambda c: c["categories"][0].pop("name"),
            "an entry of 'categories' lacks 'name'",
        ),
        ("train", lambda c: c.update(annotations={}), "lacks 'annotations', a list"),
    ],
)
def test_annotation_file(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: Options,
    shapes_copy: Path,
    split: str,
    change: Callable[[Content], object],
    expected: str,
) -> None:
    file = shapes_copy / "annotations" / f"instances_{split}.json"
    edit(shapes_copy, split, change)
    count = len(json.loads(file.read_text())["annotations"])
    changes = coco_options(options, shapes_copy)
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path / "w"), cfg_options=changes))
    assert expected.format(n=count) in line
    assert str(file) in line


def missing_image(root: Path) -> None:
    min((root / "val").iterdir()).unlink()


def all_images_elsewhere(root: Path) -> None:
    (root / "train").rename(root / "other")
    (root / "train").mkdir()


def resized_images(root: Path) -> None:
    for file in (root / "train").iterdir():
        Image.open(file).resize((80, 80)).save(file)


VAL_OF_TRAIN = {"val_evaluator.ann_file": "{root}/annotations/instances_train.json"}


@pytest.mark.parametrize(
    ("change", "named", "expected"),
    [
        (content("[]"), {}, "holds a list, and no object with the lists 'images', 'annotations' a"),
        (content("null"), {}, "holds a NoneType, and no object with the lists 'images', 'annotat"),
        (content(""), {}, "{root}/annotations/instances_train.json is not valid JSON (Expecting"),
        (
            None,
            {"train_dataloader.dataset.ann_file": "annotations"},
            "the annotation file of train_dataloader cannot be read: {root}/annotations: Is a dir",
        ),
        (
            None,
            {"train_dataloader.dataset.filter_cfg": {"filter_empty_gt": True, "min_size": 999}},
            "train.json empty? Its filter_cfg is {{'filter_empty_gt': True, 'min_size': 999}}",
        ),
        (
            missing_image,
            {},
            "1 of the 2 images of val_dataloader.dataset do not exist, first {root}",
        ),
        (all_images_elsewhere, {}, "4 of the 4 images of train_dataloader.dataset do not exist"),
        (
            None,
            {"train_dataloader.dataset.metainfo": {"classes": TURNED}},
            "train_dataloader.datas",
        ),
        (
            None,
            {"train_dataloader.dataset.metainfo": {"classes": "star"}},
            "write a tuple, ('star'",
        ),
        (
            None,
            {"train_dataloader.dataset.metainfo": {"classes": (*CLASSES, "star")}},
            "train_dataloader.dataset.metainfo.classes has 'star' more than once",
        ),
        (
            None,
            {"train_dataloader.dataset.metainfo": {"classes": ("Circle", "star")}},
            "it lacks Circle and has circle, square, triangle, star, ring, ...; spell train_data"
            "loader.dataset.metainfo.classes as there ('Circle' is 'circle'?)",
        ),
        (
            None,
            {"val_dataloader.dataset.metainfo": {"classes": CLASSES[:3]}},
            "val_dataloader.dataset has 3 classes, but model.roi_head.bbox_head 6",
        ),
        (
            None,
            {"model.roi_head.mask_head.num_classes": 5},
            "has 6 classes, but model.roi_head.mask",
        ),
        (
            None,
            {"model.roi_head.bbox_head.num_classes": 9},
            "set model.roi_head.bbox_head.num_classe",
        ),
        (
            None,
            VAL_OF_TRAIN,
            "val_evaluator.ann_file names {root}/annotations/instances_train.json, wh",
        ),
        (
            None,
            {"model.roi_head.mask_head": None, "model.roi_head.mask_roi_extractor": None},
            "val_evaluator.metric has 'segm', but the model predicts no masks: use a d",
        ),
        (
            None,
            {"train_dataloader.dataset.indices": 5},
            "train_dataloader.dataset.indices is 5, but {root}/annotations/instances_train.json "
            "has 4 images to take: give at most that, or None for all",
        ),
        (
            None,
            {"val_evaluator.metric_items": ["map"]},
            "val_evaluator.metric_items has 'map': choose from mAP, mAP_50",
        ),
        (None, {"val_dataloader.dataset.indices": -3}, "val_dataloader.dataset.indices is -3, but"),
        (
            None,
            {"train_dataloader.dataset.indices": [0, -4, 4]},
            "train_dataloader: its data set's indices have 4, but it has 4 images, 0 to 3 ({root}/",
        ),
        (
            None,
            {"train_dataloader.dataset.indices": 0},
            "train_dataloader has no image left: its data set's indices are 0, which takes none",
        ),
        (
            None,
            {"train_dataloader.dataset.pipeline.1.with_mask": False},
            "the model has heads for masks, but no LoadAnnotations step of train_dataloader.dataset"
            ".pipeline has with_mask=True: set train_dataloader.dataset.pipeline.1.with_mask=True,",
        ),
        (
            None,
            {"train_dataloader.dataset.pipeline.1.with_bbox": False},
            "the model has heads for boxes, but no LoadAnnotations step of train_dataloader.da",
        ),
        (
            None,
            {
                f"train_dataloader.dataset.pipeline.1.with_{what}": False
                for what in ("bbox", "label", "mask")
            },
            "has with_bbox=True and with_label=True and with_mask=True: set train_dataloader.datase"
            "t.pipeline.1.with_bbox=True train_dataloader.dataset.pipeline.1.with_label=True",
        ),
        (
            None,
            {"train_dataloader.dataset.pipeline.1.poly2mask": False},
            "have a run-length code as 'segmentation', first annotation 1 of image 1 (000000.png); "
            "train_dataloader.dataset.pipeline has poly2mask=False, which leaves them out: set it",
        ),
    ],
)
def test_data_set_and_config(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: Options,
    shapes_copy: Path,
    change: Callable[[Path], None] | None,
    named: dict[str, object],
    expected: str,
) -> None:
    if change:
        change(shapes_copy)
    named = {k: v.format(root=shapes_copy) if isinstance(v, str) else v for k, v in named.items()}
    changes = {**coco_options(options, shapes_copy), **named}
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path / "w"), cfg_options=changes))
    assert expected.format(root=shapes_copy) in line


@pytest.mark.parametrize("full", [0.001, 0.5, 1.0])
def test_run_length_codes_are_read_as_pycocotools_writes_them(full: float) -> None:
    pixels = np.asfortranarray(np.random.default_rng(0).random((300, 700)) < full, np.uint8)
    code = encode(pixels)
    text, size = code["counts"].decode(), code["size"]
    ends = np.flatnonzero(np.diff(pixels.ravel(order="F"), prepend=0, append=2))
    assert _decoded(text) == np.diff(ends, prepend=0).tolist()
    assert mask_fault({"counts": text, "size": size}, 300, 700) is None
    for damaged in (text[:-1], text + "1", text.replace(text[0], "\ud800", 1)):
        assert mask_fault({"counts": damaged, "size": size}, 300, 700) == BAD_MASK


def test_names_that_a_data_set_brings_may_repeat() -> None:
    """ImageNet's classes have two cranes, a bird and a machine."""

    class Cranes(BaseDataset):
        METAINFO = {"classes": ("crane", "heron", "crane")}

    check_names(Cranes(lazy_init=True), "d")
    cranes = Cranes(metainfo={"classes": ("heron", "heron")}, lazy_init=True)
    with pytest.raises(UserError, match=r"d\.metainfo\.classes has 'heron' more than once"):
        check_names(cranes, "d")


class Stop(Exception):
    """Ends a training at its first step."""


@pytest.fixture
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise Stop

    monkeypatch.setattr("mmengine.runner.loops.EpochBasedTrainLoop.run_iter", stop)


def one_outside(content: Content) -> None:
    content["annotations"][0]["bbox"] = [300, 300, 5, 5]


def many(content: Content) -> None:
    """150 more objects of the first class on the second image."""
    one = next(a for a in content["annotations"] if a["image_id"] == 2)
    content["annotations"] += [one | {"id": 1000 + i, "category_id": 1} for i in range(150)]


def one_unknown_image(content: Content) -> None:
    content["annotations"][0]["image_id"] = 77


@pytest.mark.usefixtures("_no_steps")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (one_outside, "annotations are left out by mmdet (box smaller than a pixel or outside"),
        (one_unknown_image, "1 of {n} annotations are of an image that the file does not list"),
        (many, "1 images have more objects than the model finds at most, 100 (model.test_cfg.rcn"),
    ],
)
def test_what_is_left_out_is_said(
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    options: Options,
    shapes_copy: Path,
    change: Callable[[Content], None],
    expected: str,
) -> None:
    edit(shapes_copy, "train", change)
    file = shapes_copy / "annotations" / "instances_train.json"
    count = len(json.loads(file.read_text())["annotations"])
    with pytest.raises(Stop), caplog.at_level(logging.WARNING):
        train(SHAPES_CONFIG, str(tmp_path / "w"), cfg_options=coco_options(options, shapes_copy))
    log = next(tmp_path.glob("w/*/*.log")).read_text()
    assert expected.format(n=count) in log


@pytest.mark.parametrize(
    ("model", "classes", "expected"),
    [
        (
            {"test_cfg": {"rpn": {"max_per_img": 900}, "rcnn": {"max_per_img": 30}}},
            CLASSES,
            "1 images have more objects than the model finds at most, 30 (model.test_cfg.rcnn.max_"
            "per_img), the fullest one {n} (000001.png): raise it",
        ),
        ({"test_cfg": {"max_per_img": 30}}, CLASSES[1:], None),
        ({"test_cfg": {"max_per_img": 170}}, CLASSES, None),
        ({"test_cfg": {"max_per_img": -1}}, CLASSES, None),
        ({"train_cfg": {"max_per_img": 30}}, CLASSES, None),
        ({"panoptic_head": {"num_queries": 40}}, CLASSES, "40 (model.panoptic_head.num_queries)"),
        ({"num_queries": 40, "test_cfg": {"max_per_img": 9}}, CLASSES, "(model.test_cfg.max_per"),
    ],
)
def test_more_objects_than_a_model_finds(
    monkeypatch: pytest.MonkeyPatch,
    shapes_copy: Path,
    model: dict,
    classes: tuple[str, ...],
    expected: str | None,
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ltm_mm.checks.instances.log_warning", said.append)
    edit(shapes_copy, "train", many)
    file = shapes_copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    check_object_counts(summarize(content, str(file)), classes, Config(dict(model=model)))
    most = sum(a["image_id"] == 2 for a in content["annotations"])
    assert len(said) == (expected is not None)
    assert expected is None or expected.format(n=most) in said[0]


@pytest.mark.usefixtures("_no_steps")
def test_validation_on_the_training_set_is_said(
    tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    file = "annotations/instances_train.json"
    changes = coco_options(options, shapes_copy) | {
        "val_evaluator.ann_file": str(shapes_copy / file)
    }
    changes |= {
        "val_dataloader.dataset.ann_file": file,
        "val_dataloader.dataset.data_prefix.img": "train/",
    }
    with pytest.raises(Stop):
        train(SHAPES_CONFIG, str(tmp_path / "w"), cfg_options=changes)
    log = next(tmp_path.glob("w/*/*.log")).read_text()
    assert f"val_dataloader.dataset is the training set ({shapes_copy / file})" in log


@pytest.mark.usefixtures("_no_steps")
def test_categories_that_are_not_trained_are_named(
    tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    changes = coco_options(options, shapes_copy, CLASSES[:3])
    changes |= {f"model.roi_head.{head}_head.num_classes": 3 for head in ("bbox", "mask")}
    with pytest.raises(Stop):
        train(SHAPES_CONFIG, str(tmp_path / "w"), cfg_options=changes)
    log = next(tmp_path.glob("w/*/*.log")).read_text()
    assert (
        "not among train_dataloader.dataset.metainfo.classes are left out: star, ring, cross" in log
    )


# Edits of the journey from masks to boxes that a user knows; a message names all that are left.
HEAD = {"model.roi_head.mask_head": None}
TRAIN, VAL, TEST = (
    {f"{split}_dataloader.dataset.pipeline.{step}.with_mask": False}
    for split, step in (("train", 1), ("val", 2), ("test", 2))
)
METRIC = {"val_evaluator.metric": "bbox"}


@pytest.mark.usefixtures("_no_steps")
@pytest.mark.parametrize(
    "done",
    [
        {},
        HEAD | TRAIN | METRIC,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (HEAD, TRAIN, HEAD | TRAIN, HEAD | VAL)),
    ],
)
def test_a_file_of_boxes_names_all_options_at_once(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, shapes_copy: Path, done: dict
) -> None:
    for split in ("train", "val"):
        edit(shapes_copy, split, without("segmentation"))
    changes = coco_options(options, shapes_copy) | done
    changes["default_hooks.checkpoint.save_best"] = "coco/segm_mAP"
    work = str(tmp_path / "w")
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, work, cfg_options=changes))
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions)
    advice = line.partition("--cfg-options ")[2].split()
    named = parser.parse_args(["--cfg-options", *advice]).cfg_options
    everything = HEAD | TRAIN | VAL | TEST | METRIC | {"test_evaluator.metric": "bbox"}
    everything["default_hooks.checkpoint.save_best"] = "coco/bbox_mAP"
    assert named == {key: value for key, value in everything.items() if key not in done}
    with pytest.raises(Stop):
        train(SHAPES_CONFIG, work, cfg_options=changes | named)


@pytest.mark.usefixtures("_no_steps")
def test_masks_that_the_validation_alone_lacks(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    edit(shapes_copy, "val", without("segmentation", 1))
    changes, work = coco_options(options, shapes_copy), str(tmp_path / "w")
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, work, cfg_options=changes))
    assert line.endswith(
        "val_dataloader.dataset.pipeline loads masks: take them out, or measure boxes alone, "
        "--cfg-options val_dataloader.dataset.pipeline.2.with_mask=False val_evaluator.metric=bbox"
    )
    with pytest.raises(Stop):
        train(SHAPES_CONFIG, work, cfg_options=changes | VAL | METRIC)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: dict(type="RepeatDataset", times=2, dataset=inner),
        lambda inner: dict(type="ConcatDataset", datasets=[inner, inner]),
        lambda inner: dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=inner),
        lambda inner: dict(
            type="RepeatDataset",
            times=2,
            dataset=dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=inner),
        ),
        lambda inner: dict(
            type="MultiImageMixDataset",
            dataset={**inner, "pipeline": inner["pipeline"][:2]},
            pipeline=inner["pipeline"][2:],
        ),
    ],
    ids=["repeat", "concat", "balanced", "repeat-balanced", "mix"],
)
def test_wrappers_are_looked_through(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: Options,
    shapes_copy: Path,
    wrap: Callable[[dict], dict],
) -> None:
    from ltm_mm.engine import load_config

    cfg = load_config(SHAPES_CONFIG, coco_options(options, shapes_copy))
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset.to_dict())
    config = tmp_path / "wrapped.py"
    cfg.dump(config)
    edit(shapes_copy, "train", turn_categories)
    line = line_of(capsys, lambda: train(str(config), str(tmp_path / "w")))
    assert "mmdet numbers labels in the file's order, so names would be exchanged" in line


@pytest.mark.slow
def test_the_look_at_a_file_of_cocos_size(capsys: pytest.CaptureFixture) -> None:
    """COCO train2017: 118 287 images, 860 001 instances; seconds, and next to no memory."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480}
              for i in range(118_287)]  # fmt: skip
    categories = [{"id": i, "name": f"class {i}"} for i in range(80)]
    annotations = [
        {"id": i, "image_id": i % len(images), "category_id": i % 80, "bbox": [9.5, 8, 30, 40],
         "area": 700.5, "iscrowd": 0, "segmentation": [[9.5, 8, 39, 8, 39, 48]]}
        for i in range(860_001)
    ]  # fmt: skip
    content = {"images": images, "categories": categories, "annotations": annotations}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    summary = summarize(content, "instances_train2017.json")
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB
    assert not summary.faults
    assert sum(summary.instances.values()) == 860_001
    assert "annotation/s" in capsys.readouterr().err

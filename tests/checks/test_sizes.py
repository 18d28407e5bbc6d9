"""Photos that their EXIF tag turns: sizes are those that the pipeline's own step gives."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DefaultScope
from PIL import Image

from ltm_mm.checks.coco import inspect_coco_files
from ltm_mm.checks.instances import check_sizes
from ltm_mm.checks.labels import check_labels
from ltm_mm.checks.reading import ReadGuard, guard
from ltm_mm.checks.sizes import loaded_size, stored_size
from ltm_mm.errors import UserError

RAW = (8, 4)  # height and width as stored
SHOWN = (4, 8)
Make = Callable[..., object]


def photo(file: Path, orientation: int) -> Path:
    """A photo of ``RAW`` pixels with an EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (*RAW, 3), np.uint8)
    Image.fromarray(pixels).save(file, exif=exif)
    return file


STEPS = pytest.mark.parametrize(
    ("options", "turns"),
    [
        ({}, True),
        ({"color_type": "grayscale"}, True),
        ({"color_type": "color_ignore_orientation"}, False),
        ({"color_type": "unchanged"}, False),
        ({"imdecode_backend": "pillow"}, True),
        ({"imdecode_backend": "pillow", "color_type": "color_ignore_orientation"}, False),
    ],
)


@STEPS
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_the_size_is_that_of_the_step(
    tmp_path: Path, options: dict, turns: bool, orientation: int, suffix: str
) -> None:
    file, step = photo(tmp_path / f"photo{suffix}", orientation), LoadImageFromFile(**options)
    own = step(dict(img_path=str(file)))["img"].shape[:2]
    assert loaded_size(str(file), step) == own
    assert stored_size(str(file)) == RAW
    assert loaded_size(str(file), None) == (None if orientation > 4 else RAW)
    if suffix == ".jpg":
        assert own == (SHOWN if turns and orientation > 4 else RAW)


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"no photo")
    for file in (tmp_path / "text.jpg", tmp_path / "none.jpg"):
        assert loaded_size(str(file), LoadImageFromFile()) is stored_size(str(file)) is None


def detection(root: Path, options: dict, size: tuple[int, int]) -> object:
    """mmdet's data set of the photo, whose annotation file says it is of a size."""
    from mmdet.datasets import CocoDataset

    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4}
    content = {
        "images": [{"id": 1, "file_name": "photo.jpg", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**annotation, "iscrowd": 0}],
    }
    (root / "a.json").write_text(json.dumps(content))
    with DefaultScope.overwrite_default_scope("mmdet"), inspect_coco_files() as summaries:
        dataset = CocoDataset(
            ann_file=str(root / "a.json"),
            data_prefix=dict(img=str(root)),
            metainfo=dict(classes=("a",)),
            pipeline=[dict(type="LoadImageFromFile", **options)],
        )
    dataset.summary = summaries[str(root / "a.json")]
    return dataset


@STEPS
@pytest.mark.parametrize("size", [RAW, SHOWN])
def test_boxes_of_a_turned_photo(
    tmp_path: Path, options: dict, turns: bool, size: tuple[int, int]
) -> None:
    photo(tmp_path / "photo.jpg", 6)
    dataset = detection(tmp_path, options, size)
    if (size == SHOWN) == turns:
        check_sizes(dataset, "d", dataset.summary)
        guard(dataset, skip=True)
        assert dataset[0] is not None
        return
    other = "color_ignore_orientation" if turns else "color"
    of = "stored" if turns else "shown"
    with pytest.raises(UserError) as caught:
        check_sizes(dataset, "d", dataset.summary)
    assert f"image 1 is of {size[0]} x {size[1]} pixels (height x width) there" in str(caught.value)
    assert f"set d.pipeline.0.color_type='{other}'" in str(caught.value)
    assert f"annotations are of the picture as it is {of})" in str(caught.value)
    step, entry = dataset.pipeline.transforms[0], dataset.get_data_info(0)
    guard(dataset, skip=False)
    with pytest.raises(UserError, match=r"photo\.jpg is of .* its annotation file says"):
        dataset[0]
    dataset.pipeline.transforms[0] = step
    guard(dataset, skip=True)
    assert isinstance(dataset.pipeline.transforms[0], ReadGuard)
    assert dataset.pipeline.transforms[0](entry) is None  # another photo takes its place


@STEPS
@pytest.mark.parametrize("size", [RAW, SHOWN])
def test_label_maps_of_a_turned_photo(
    tmp_path: Path, options: dict, turns: bool, size: tuple[int, int]
) -> None:
    from mmseg.datasets import BaseSegDataset

    photo(tmp_path / "photo.jpg", 6)
    labels = np.zeros(size, np.uint8)
    labels[0] = 1
    Image.fromarray(labels).save(tmp_path / "photo.png")
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = BaseSegDataset(
            data_root=str(tmp_path),
            metainfo=dict(classes=("a", "b")),
            pipeline=[dict(type="LoadImageFromFile", **options), dict(type="LoadAnnotations")],
        )
    if (size == SHOWN) == turns:
        check_labels(dataset, "d")
        return
    with pytest.raises(UserError, match=r"photo\.png is of .* pixels .*d\.pipeline\.0\.color_type"):
        check_labels(dataset, "d")

"""The built-in shapes data set: the same everywhere, valid, made whole or not at all."""

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope, Registry
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from ltm_mm.datasets import SHAPES, SIZE, draw_image, ensure_shapes, shapes
from ltm_mm.registry import DATASETS, register_or_explain

COUNTS = {"train": 6, "val": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", COUNTS)


@pytest.fixture
def scope(request: pytest.FixtureRequest):
    with DefaultScope.overwrite_default_scope(request.param):
        yield


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("split", "index", "digest"),
    [
        ("train", 0, "c9e2bdd1aba65b10"),
        ("train", 499, "28d770248a6de76e"),
        ("val", 0, "75b96745823e974a"),
    ],
)
def test_same_pixels_on_every_machine(split: str, index: int, digest: str) -> None:
    image, objects, labels = draw_image(split, index)
    content = image.tobytes() + objects.tobytes() + bytes(labels)
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_same_annotations_on_every_machine(root: Path) -> None:
    text = (root / "annotations" / "instances_val.json").read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "fe06a09da2f27188"


def test_variety() -> None:
    drawn = [draw_image("train", index) for index in range(40)]
    labels = np.concatenate([labels for _, _, labels in drawn])
    areas = np.concatenate([np.bincount(o.ravel(), minlength=len(s) + 1)[1:] for _, o, s in drawn])
    assert set(labels.tolist()) == set(range(len(SHAPES)))
    assert min(len(labels) for _, _, labels in drawn) >= 1
    assert areas.min() >= shapes._MIN_PIXELS
    assert 0.4 < (areas < 32 * 32).mean() < 0.8
    assert areas.max() > 48 * 48


@pytest.mark.parametrize("split", COUNTS)
def test_annotations_fit_the_pictures(root: Path, split: str) -> None:
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    assert len(coco.imgs) == COUNTS[split]
    assert coco.anns
    for index, info in coco.imgs.items():
        assert Image.open(root / split / info["file_name"]).size == (SIZE, SIZE)
        semantic = np.asarray(Image.open(root / "annotations_semantic" / split / info["file_name"]))
        from_instances = np.zeros_like(semantic)
        for annotation in coco.loadAnns(coco.getAnnIds(index)):
            mask = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum()
            box = mask_utils.toBbox(coco.annToRLE(annotation))
            np.testing.assert_array_equal(annotation["bbox"], box)
            assert not from_instances[mask].any(), "visible parts overlap"
            from_instances[mask] = annotation["category_id"]
        np.testing.assert_array_equal(from_instances, semantic)


@pytest.mark.parametrize("mask", ["0000", "1111", "1001", "0110", "0111", "1000"])
def test_rle_is_that_of_pycocotools(mask: str) -> None:
    array = np.array([int(c) for c in mask], bool).reshape(2, 2)
    rle = mask_utils.frPyObjects(shapes.encode_rle(array), 2, 2)
    np.testing.assert_array_equal(mask_utils.decode(rle), array)
    assert rle == mask_utils.encode(np.asfortranarray(array.astype(np.uint8)))


def test_made_once(root: Path) -> None:
    before = (root / "train" / "000000.png").stat().st_mtime_ns
    assert ensure_shapes(root) == root
    assert (root / "train" / "000000.png").stat().st_mtime_ns == before


def test_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data" / "shapes"

    def interrupted(split: str, index: int):
        if index == 2:
            raise KeyboardInterrupt
        return draw_image(split, index)

    monkeypatch.setattr(shapes, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(target, COUNTS)
    assert not any(path.suffix == ".png" for path in target.parent.rglob("*"))
    monkeypatch.undo()
    (target.parent / ".shapes.part").mkdir()  # as a killed process leaves it
    (target.parent / ".shapes.part" / "old.png").touch()
    ensure_shapes(target, COUNTS)
    assert "old.png" not in _files(target)
    assert not (target.parent / ".shapes.part").exists()


def test_two_processes_at_once(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "shapes"
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(ensure_shapes, target, COUNTS) for _ in range(2)]
        assert [job.result(timeout=60) for job in jobs] == [target, target]
    assert _files(target) == _files(root)


@pytest.mark.parametrize("content", [None, "ltm_mm shapes v0\n"])
def test_other_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "RECIPE.txt").write_text(content)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="give another data_root"):
        ensure_shapes(tmp_path)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("scope", ["mmdet"], indirect=True)
def test_mmdet_pipeline(root: Path, scope: None) -> None:
    from mmdet.registry import DATASETS as MMDET_DATASETS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = MMDET_DATASETS.build(
        dict(
            type="ltm_mm.ShapesInstances",
            data_root=str(root),
            ann_file="annotations/instances_train.json",
            data_prefix=dict(img="train/"),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
                dict(type="PackDetInputs"),
            ],
        )
    )
    assert len(dataset) == COUNTS["train"]
    for index in range(len(dataset)):
        sample = dataset[index]
        image, objects, labels = draw_image("train", index)
        np.testing.assert_array_equal(sample["inputs"].permute(1, 2, 0).numpy()[..., ::-1], image)
        instances = sample["data_samples"].gt_instances
        assert instances.labels.tolist() == labels
        masks = instances.masks.to_ndarray().astype(bool)
        for number, mask in enumerate(masks, 1):
            np.testing.assert_array_equal(mask, objects == number)


@pytest.mark.parametrize("scope", ["mmseg"], indirect=True)
def test_mmseg_pipeline(root: Path, scope: None) -> None:
    from mmseg.registry import DATASETS as MMSEG_DATASETS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = MMSEG_DATASETS.build(
        dict(
            type="ltm_mm.ShapesSemantic",
            data_root=str(root),
            data_prefix=dict(img_path="val", seg_map_path="annotations_semantic/val"),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations"),
                dict(type="PackSegInputs"),
            ],
        )
    )
    assert len(dataset) == COUNTS["val"]
    assert dataset.metainfo["classes"] == ("background", *SHAPES)
    for index in range(len(dataset)):
        sample = dataset[index]
        image, objects, labels = draw_image("val", index)
        np.testing.assert_array_equal(sample["inputs"].permute(1, 2, 0).numpy()[..., ::-1], image)
        expected = np.array([0, *(label + 1 for label in labels)])[objects]
        semantic = sample["data_samples"].gt_sem_seg.data[0]
        np.testing.assert_array_equal(semantic.numpy(), expected)


@pytest.mark.parametrize("scope", ["mmpretrain"], indirect=True)
@pytest.mark.parametrize("margin", [0, 4])
def test_mmpretrain_reads_one_object_per_sample(root: Path, scope: None, margin: int) -> None:
    pytest.importorskip("mmpretrain", reason="pip install 'ltm_mm[mmpretrain]'")
    from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS

    dataset = MMPRETRAIN_DATASETS.build(
        dict(
            type="ltm_mm.ShapesClasses",
            data_root=str(root),
            split="val",
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="ltm_mm.CropObject", margin=margin),
                dict(type="PackInputs"),
            ],
        )
    )
    assert dataset.metainfo["classes"] == SHAPES
    drawn = [draw_image("val", index) for index in range(COUNTS["val"])]
    assert dataset.get_gt_labels().tolist() == [label for _, _, labels in drawn for label in labels]
    index = 0
    for image, objects, labels in drawn:
        for number in range(1, len(labels) + 1):
            rows, columns = np.nonzero(objects == number)
            top, left = max(rows.min() - margin, 0), max(columns.min() - margin, 0)
            crop = image[top : rows.max() + 1 + margin, left : columns.max() + 1 + margin]
            found = dataset[index]["inputs"].permute(1, 2, 0).numpy()[..., ::-1]
            np.testing.assert_array_equal(found, crop)
            index += 1


def test_classes_need_a_known_split_and_a_margin(root: Path) -> None:
    pytest.importorskip("mmpretrain", reason="pip install 'ltm_mm[mmpretrain]'")
    from ltm_mm.datasets.shapes_classes import CropObject, ShapesClasses

    with pytest.raises(ValueError, match="split must be 'train' or 'val', got 'test'"):
        ShapesClasses(data_root=str(root), split="test")
    with pytest.raises(ValueError, match="margin must be >= 0 pixels, got -1"):
        CropObject(margin=-1)


def test_missing_package_fails_at_use() -> None:
    registry = Registry("test data sets")
    register_or_explain(registry, "ShapesSemantic", "mmseg", "ltm_mm.no_such_module")
    missing = registry.get("ShapesSemantic")
    with pytest.raises(ImportError, match=r"ShapesSemantic needs mmseg.*no_such_module.*pip"):
        missing(data_root="data/shapes")
    register_or_explain(registry, "ShapesClasses", "mmpretrain", "ltm_mm.no_such_module")
    with pytest.raises(ImportError, match=r"needs mmpretrain.*ltm_mm\[mmpretrain\]"):
        registry.get("ShapesClasses")()


def test_registered() -> None:
    for name in ("ShapesInstances", "ShapesSemantic"):
        assert DATASETS.get(name).METAINFO["classes"][-len(SHAPES) :] == SHAPES


def test_json_is_plain_coco(root: Path) -> None:
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert {"info", "images", "annotations", "categories"} == set(content)
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))

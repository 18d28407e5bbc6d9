"""Label maps that are damaged, missing or do not fit the classes: one line names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ltm_mm.checks.heads import check_head
from ltm_mm.checks.labels import LabelCheck
from ltm_mm.checks.reading import ReadGuard
from ltm_mm.datasets import SHAPES, ensure_shapes
from ltm_mm.engine import train
from ltm_mm.errors import UserError
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")


def options(root: Path) -> dict[str, object]:
    """One step on a few images, one evaluation."""
    changes: dict[str, object] = {
        "train_cfg.max_iters": 1,
        "train_cfg.val_interval": 1,
        "train_dataloader.batch_size": 2,
    }
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.data_root"] = str(root)
        changes[f"{part}_dataloader.num_workers"] = 0
        changes[f"{part}_dataloader.persistent_workers"] = False
    return changes


@pytest.fixture(scope="module")
def two_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos to train on and one to validate; not to be changed by a test."""
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 2, "val": 1})


def high_label(file: Path) -> None:
    labels = np.array(Image.open(file))
    labels[:10] = 9
    Image.fromarray(labels).save(file)


def colours(file: Path) -> None:
    Image.open(file).convert("RGB").save(file)


def only_255(file: Path) -> None:
    """As drawn in an image editor: 255 for the object, 0 for the rest."""
    labels = np.array(Image.open(file))
    Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(file)


def all_255(file: Path) -> None:
    Image.fromarray(np.full_like(np.array(Image.open(file)), 255)).save(file)


def smaller(file: Path) -> None:
    labels = Image.open(file)
    labels.resize((labels.width // 2, labels.height), Image.NEAREST).save(file)


def sixteen_bits(file: Path) -> None:
    labels = np.array(Image.open(file)).astype(np.uint16)
    labels[0, 0] = 256  # which eight bits take for 0
    Image.fromarray(labels).save(file)


def jpeg(file: Path) -> None:
    Image.open(file).save(file, format="JPEG", quality=100)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "split", "line"),
    [
        (high_label, "train", "has the label 9; with 7 classes there are 0 to 6, and 255"),
        (high_label, "val", "has the label 9; with 7 classes there are 0 to 6, and 255"),
        (colours, "train", "has 3 channels; a label map has one"),
        (
            only_255,
            "train",
            "hold only 0 and 255 as loaded, of which 255 does not count (2 checked",
        ),
        (only_255, "val", "draw background as 0, circle as 1, square as 2, triangle as 3, star as"),
        (
            all_255,
            "train",
            "hold only 255 as loaded, of which 255 does not count (2 checked, the",
        ),
        (smaller, "train", "is of 160 x 80 pixels (height x width), its image of 160 x 160: label"),
        (smaller, "val", "is of 160 x 80 pixels (height x width), its image of 160 x 160: label"),
        (sixteen_bits, "train", "has the label 256, and mmseg reads 8 bits per pixel (0 to 255)"),
        (jpeg, "val", "is a JPEG, whose compression changes labels: write label maps as PNG"),
        (cut, "train", "is damaged or no image: replace it"),
        (
            Path.unlink,
            "train",
            "2 of the 2 label maps of train_dataloader.dataset do not exist, first",
        ),
    ],
)
def test_label_maps(
    tmp_path: Path, two_shapes: Path, damage: Callable[[Path], None], split: str, line: str
) -> None:
    root = Path(shutil.copytree(two_shapes, tmp_path / "shapes"))
    files = sorted((root / "annotations_semantic" / split).iterdir())
    for file in files:
        damage(file)
    with pytest.raises(UserError) as caught:
        train(CONFIG, str(tmp_path / "work"), cfg_options=options(root))
    assert line in str(caught.value)
    assert any(str(file) in str(caught.value) for file in files)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [([[0, 2], [1, 255]], None), ([[0, 3]], "label 3"), ([[254]], "label 254")],
)
def test_label_check(labels: list, problem: str | None) -> None:
    fault = LabelCheck(3, 255)({"gt_seg_map": np.array(labels, np.uint8)})
    assert fault is None if problem is None else problem in str(fault)


def test_a_head_with_too_few_classes(tmp_path: Path, two_shapes: Path) -> None:
    changes = {**options(two_shapes), "model.decode_head.num_classes": 5}
    with pytest.raises(UserError, match=r"has 7 classes, but the model's head 5: set model"):
        train(CONFIG, str(tmp_path / "work"), cfg_options=changes)


def test_an_auxiliary_head_with_too_few_classes(tmp_path: Path, two_shapes: Path) -> None:
    changes = {**options(two_shapes), "model.auxiliary_head.num_classes": 3}
    with pytest.raises(UserError, match=r"has 7 classes, but model.auxiliary_head 3: set model"):
        train(CONFIG, str(tmp_path / "work"), cfg_options=changes)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_pipeline_that_loads_no_label_maps(tmp_path: Path, two_shapes: Path, split: str) -> None:
    steps = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
    changes = {**options(two_shapes), f"{split}_dataloader.dataset.pipeline": steps}
    line = rf"^{split}_dataloader.dataset.pipeline has no LoadAnnotations step, which loads the la"
    with pytest.raises(UserError, match=line):
        train(CONFIG, str(tmp_path / "work"), cfg_options=changes)


def test_the_last_of_several_heads_counts() -> None:
    model, names = nn.Module(), ("a", "b", "c")
    model.decode_head = nn.ModuleList([nn.Module(), nn.Module()])
    model.decode_head[0].num_classes, model.decode_head[1].num_classes = 2, 3
    check_head(model, names, "train_dataloader.dataset")
    model.decode_head[1].num_classes = 2
    with pytest.raises(UserError, match="3 classes, but the model's head 2"):
        check_head(model, names, "train_dataloader.dataset")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"{split}_dataloader.dataset.pipeline.{load}.reduce_zero_label": True},
            "dataset.pipeline.{load} (LoadAnnotations) has reduce_zero_label=True, the data",
        ),
        (
            {"{split}_dataloader.dataset.ignore_index": 0},
            "dataset.ignore_index is 0, but that of model.decode_head 255: pixels of one of them",
        ),
        (
            {"{split}_dataloader.dataset.img_suffix": ".jpg"},
            "ends in '.jpg' (but in .png: set img_suffix)",
        ),
        (
            {"val_evaluator.iou_metrics": ["mIoU", "mIuO"]},
            "val_evaluator.iou_metrics has 'mIuO': choose from mIoU, mDice, mFscore",
        ),
        (
            {"{split}_dataloader.dataset.ann_file": "{split}.txt"},
            "{split}.txt, which {split}_dataloader.dataset.ann_file names, does not exist; set --",
        ),
        (
            {"{split}_dataloader.dataset.metainfo": {"classes": ("background", *SHAPES[::-1])}},
            None,
        ),
    ],
)
@pytest.mark.parametrize(("split", "load"), [("train", 1), ("val", 2)])
def test_options_of_a_data_set(
    tmp_path: Path, two_shapes: Path, changes: dict, line: str | None, split: str, load: int
) -> None:
    named = {key.format(split=split, load=load): value for key, value in changes.items()}
    given = {k: v.format(split=split) if isinstance(v, str) else v for k, v in named.items()}
    if line is None:  # mmseg maps labels by name where a data set has names of its own
        given[f"{split}_dataloader.dataset.type"] = "BaseSegDataset"
        given[f"{split}_dataloader.dataset.img_suffix"] = ".png"
        line = "a label is a place in this list, so all must be one list"
    with pytest.raises(UserError) as caught:
        train(CONFIG, str(tmp_path / "work"), cfg_options={**options(two_shapes), **given})
    assert line.format(split=split, load=load) in str(caught.value)


def test_another_size_on_the_way(tmp_path: Path) -> None:
    """What headers do not show, a loading step does: an image that it turns, for example."""
    fault = LabelCheck(3, 255)({"gt_seg_map": np.zeros((4, 6), np.uint8), "ori_shape": (6, 4)})
    assert fault is not None
    assert "is of 4 x 6 pixels (height x width), its image of 6 x 4" in fault


def test_a_loading_step_keeps_its_own_words(tmp_path: Path) -> None:
    """A file that can be decoded is not called damaged."""
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")

    def step(results: dict) -> dict:
        raise AssertionError("the true cause")

    guard = ReadGuard(step, "img_path", skip=True)
    with pytest.raises(UserError, match=r"\(function\) cannot load .*photo.png: the true cause"):
        guard({"img_path": str(tmp_path / "photo.png")})

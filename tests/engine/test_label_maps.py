"""Label maps that are damaged, missing or do not fit the classes: one line names the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import UserError, train
from ltm_mm.engine.data import LabelCheck, check_head
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


def high_label(file: Path) -> None:
    labels = np.array(Image.open(file))
    labels[:10] = 9
    Image.fromarray(labels).save(file)


def colours(file: Path) -> None:
    Image.open(file).convert("RGB").save(file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "split", "line"),
    [
        (high_label, "train", "has the label 9; with 7 classes there are 0 to 6, and 255"),
        (high_label, "val", "has the label 9; with 7 classes there are 0 to 6, and 255"),
        (colours, "train", "has 3 channels; a label map has one"),
        (cut, "train", "is damaged or no image: replace it"),
        (Path.unlink, "train", "does not exist: replace it"),
    ],
)
def test_label_maps(tmp_path: Path, damage: Callable[[Path], None], split: str, line: str) -> None:
    root = ensure_shapes(tmp_path / "shapes", {"train": 2, "val": 1})
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
    found = LabelCheck(3, 255)({"gt_seg_map": np.array(labels, np.uint8)})
    assert found is None if problem is None else problem in str(found)


def test_a_head_with_too_few_classes(tmp_path: Path) -> None:
    root = ensure_shapes(tmp_path / "shapes", {"train": 2, "val": 1})
    changes = {**options(root), "model.decode_head.num_classes": 5}
    with pytest.raises(UserError, match=r"has 7 classes, but the model's head 5: set model"):
        train(CONFIG, str(tmp_path / "work"), cfg_options=changes)


def test_the_last_of_several_heads_counts() -> None:
    model, data = nn.Module(), nn.Module()
    model.decode_head = nn.ModuleList([nn.Module(), nn.Module()])
    model.decode_head[0].num_classes, model.decode_head[1].num_classes = 2, 3
    data.metainfo = {"classes": ("a", "b", "c")}
    check_head(model, data, "train_dataloader.dataset")
    model.decode_head[1].num_classes = 2
    with pytest.raises(UserError, match="3 classes, but the model's head 2"):
        check_head(model, data, "train_dataloader.dataset")

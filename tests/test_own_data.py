"""docs/own-data.md: its snippets convert exactly; its commands lead from photos to predictions."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ltm_mm.datasets import SHAPES
from tests import own_data
from tests.conftest import ROOT
from tests.test_readme import blocks, words_of

PAGE = ROOT / "docs" / "own-data.md"
COUNT = 60


def snippet(part: str) -> str:
    """The page's one Python block that has this in it."""
    (code,) = (code for code in blocks(PAGE, "python") if part in code)
    return code


def convert(part: str, capsys: pytest.CaptureFixture) -> list[str]:
    """Run a snippet in this folder; the class names that it prints."""
    pytest.importorskip("supervision")
    exec(snippet(part), {"__name__": "page"})
    said = re.search(r"^classes = (.*)$", capsys.readouterr().out, flags=re.M)
    return ast.literal_eval(said[1])


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (own_data.write_voc, "from_pascal_voc"),
        (own_data.write_yolo, "from_yolo"),
        (own_data.write_masks, "mask_to_rle"),
    ],
)
def test_snippets_convert_exactly(
    write: Callable,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 10)
    classes = convert(part, capsys)
    one_class = classes == ["object"]
    if not one_class:
        assert set(classes) <= set(SHAPES)
    known = {name: found for name, *found in own_data.drawn(10)}
    images = 0
    for split in ("train", "val"):
        data = COCO(f"data/mine/annotations/instances_{split}.json")
        assert [c["name"] for c in data.dataset["categories"]] == classes
        for key, image in data.imgs.items():
            _, objects, labels, boxes = known[Path(image["file_name"]).stem]
            assert Path("data/mine/data/images", image["file_name"]).is_file()
            found = data.imgToAnns[key]
            expected = {
                (*box[:2], *(box[2:] - box[:2]), "object" if one_class else SHAPES[label])
                for box, label in zip(boxes, labels, strict=True)
            }
            rounded = {(*np.round(a["bbox"], 3), classes[a["category_id"] - 1]) for a in found}
            assert rounded == expected
            assert not any(a["iscrowd"] for a in found)
            for entry in found if one_class else ():
                mask = data.annToMask(entry).astype(bool)
                assert any(np.array_equal(mask, objects == k) for k in range(1, len(labels) + 1))
                assert entry["area"] == mask.sum()
            images += 1
    assert images == 10


def test_label_maps_from_outlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    own_data.write_coco(tmp_path, 5)
    code = snippet("annToMask").replace("path/to/fruits_nuts", "data/mine")
    exec(code, {"__name__": "page"})
    for name, _, objects, labels, _ in own_data.drawn(5):
        (file,) = tmp_path.glob(f"data/fruits_nuts_labels/labels/*/{name}.png")
        expected = np.array([0, *(label + 1 for label in labels)])[objects]
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)
        assert (file.parents[2] / "images" / file.parent.name / f"{name}.png").is_file()


def run(words: list[str], folder: Path, ok: bool = True) -> str:
    """A command of the page in a folder; what it printed."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "DATA_ROOT")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable if word == "python" else word for word in words]
    words = [name for w in words for name in (sorted(glob(str(folder / w))) if "*" in w else [w])]
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=1500, check=False
    )
    assert not ok or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def copy_config(folder: Path, name: str, **changes: object) -> str:
    """A copy of a shipped config with another first block, as the page asks for."""
    text = (ROOT / "configs" / name).read_text()
    for key, value in changes.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value!r}", text, flags=re.M)
        assert count == 1, key
    (folder / "configs" / "mine.py").write_text(text)
    return "configs/mine.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of a user, with the repository's tools and configs."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "configs").mkdir()
    for file in (ROOT / "configs").iterdir():
        (tmp_path / "configs" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_commands(name: str, config: str) -> list[list[str]]:
    """The page's commands about a shipped config, with a copy of it in its place."""
    (block,) = (block for block in blocks(PAGE, "bash") if name in block)
    return [words_of(line.replace(f"configs/{name}", config)) for line in block.splitlines()]


def metric(said: str, name: str) -> float:
    return float(re.findall(rf"{name} ([\d.]+)", said)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["voc", "yolo", "coco", "masks"])
def test_from_photos_to_predictions(kind: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The commands of the page, as they are written there, on 60 drawn photos."""
    getattr(own_data, f"write_{kind}")(folder, COUNT)
    parts = dict(voc="from_pascal_voc", yolo="from_yolo", masks="mask_to_rle")
    classes = convert(parts[kind], capsys) if kind in parts else list(SHAPES)
    name = f"ltm_swin_{'maskrcnn' if kind == 'masks' else 'fasterrcnn'}_fruits_nuts.py"
    config = copy_config(
        folder,
        name,
        data_root="data/mine",
        classes=tuple(classes),
        image_size=(160, 160),
        batch_size=8,
        epochs=6,
        repeats=2,
    )
    (folder / "photos").symlink_to(folder / "data" / "mine" / "data" / "images")
    commands = page_commands("ltm_swin_fasterrcnn_fruits_nuts.py", config)
    assert [Path(words[1]).stem for words in commands] == [
        *("train", "test", "report", "predict", "export", "test")
    ]
    if kind in ("yolo", "coco"):  # the same from here on
        commands = commands[:2]
    train, test, *others = [run(words, folder) for words in commands]
    assert len(list(folder.glob("work_dirs/mine/best_*.pth"))) == 1
    assert metric(test, "coco/bbox_mAP_50") > 0.05
    assert "checkpoint" in train
    logs = [
        file.read_text() for file in folder.glob("work_dirs/mine/*/*.log")
    ]  # tests have some, too
    assert any(f"{COUNT * 4 // 5} images x 2, {len(classes)} classes" in log for log in logs)
    if not others:
        return
    report, _, _, exported = others
    for figure in ("coco/bbox_mAP", "coco/bbox_mAP_50"):
        assert metric(exported, figure) == pytest.approx(metric(test, figure), abs=1e-3)
    assert Path(re.search(r"report: (\S+)", report)[1]).stat().st_size > 10_000
    images = json.loads((folder / "predictions" / "images.json").read_text())["images"]
    assert len(images) == COUNT
    assert len(list((folder / "predictions" / "pictures").iterdir())) == COUNT


@pytest.mark.slow
def test_from_label_maps_to_predictions(folder: Path) -> None:
    own_data.write_label_maps(folder, COUNT)
    config = copy_config(
        folder,
        "ltm_swin_upernet_fruits_nuts.py",
        data_root="data/fruits_nuts_labels",
        classes=("background", *SHAPES),
        image_size=(160, 160),
        epochs=4,
        repeats=2,
    )
    (folder / "photos").symlink_to(folder / "data" / "fruits_nuts_labels" / "images" / "val")
    commands = page_commands("ltm_swin_upernet_fruits_nuts.py", config)
    _, tested, report, _, _, exported = [run(words, folder) for words in commands]
    assert metric(tested, "mIoU") > 10
    assert Path(re.search(r"report: (\S+)", report)[1]).stat().st_size > 10_000
    assert len(list((folder / "predictions" / "labels").glob("*.png"))) == COUNT // 5
    assert metric(exported, "mIoU") == pytest.approx(metric(tested, "mIoU"), abs=0.02)

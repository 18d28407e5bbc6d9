"""Photos of extreme shape: drawn, measured and trained beside; one never ends a folder's run."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from PIL import Image

from ltm_mm.checks.reading import MAX_UNREADABLE, guard, try_pipeline
from ltm_mm.engine import load_config
from ltm_mm.engine.photos import read_photos
from ltm_mm.errors import UserError
from ltm_mm.visualization import visualize
from ltm_mm.visualization.panels import detailed_points
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs" / "ltm_swin_maskrcnn_shapes.py")
DRAWN = [(1, 300), (300, 1), (1, 1), (2, 2), (5, 60)]
LEFT_OUT = [(3000, 4), (4, 3000)]  # Resize keeps the ratio: nothing is left of the short side


def save(folder: Path, shapes: list[tuple[int, int]]) -> list[Path]:
    """Photos of these heights and widths."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{h}x{w}.png" for h, w in shapes]
    for file, shape in zip(files, shapes, strict=True):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)).save(file)
    return files


@pytest.mark.slow
def test_a_folder_is_drawn_to_its_end(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = save(tmp_path / "photos", [*DRAWN, *LEFT_OUT, (7, 7)])[-1]
    draw = detailed_points

    def fail(image: np.ndarray) -> list[tuple[int, int]]:
        if image.shape[0] == 7:
            raise IndexError("of some library")
        return draw(image)

    monkeypatch.setattr("ltm_mm.visualization.merge_visualizer.detailed_points", fail)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="3 of 8 images were left out, see above"):
        visualize(CONFIG, str(tmp_path / "photos"), out_dir=str(out), blocks=[-1], dpi=10)
    assert sorted(place.name for place in out.iterdir()) == sorted(f"{h}x{w}" for h, w in DRAWN)
    said = capsys.readouterr().err
    assert "3000x4.png, 3000 x 4 pixels (height x width), cannot be used by the config's" in said
    assert f"left out: {broken}: IndexError('of some library')" in said
    with pytest.raises(UserError, match=r"4x3000\.png, 4 x 3000 pixels .* cannot be used"):
        visualize(CONFIG, str(tmp_path / "photos" / "4x3000.png"), out_dir=str(out))


@pytest.mark.parametrize("shape", DRAWN)
def test_points_of_detail(shape: tuple[int, int]) -> None:
    points = detailed_points(np.arange(np.prod(shape) * 3).reshape(*shape, 3) % 256)
    assert all(0 <= x < shape[1] and 0 <= y < shape[0] for x, y in points)


def test_photos_to_measure_on(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    cfg = load_config(CONFIG)
    good, bad = save(tmp_path, DRAWN), save(tmp_path, LEFT_OUT)
    with DefaultScope.overwrite_default_scope("mmdet"):
        assert len(read_photos(cfg, [bad[0], *good, bad[1]], None, "cpu")) == len(good)
        assert capsys.readouterr().err.count("left out: ") == 2
        with pytest.raises(UserError, match=r"4x3000\.png, 4 x 3000 pixels .* cannot be used"):
            read_photos(cfg, bad, None, "cpu")


def data_set(files: list[Path], training: bool) -> BaseDataset:
    """As mmengine builds it, with the pipeline of a detector up to resizing."""
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(160, 160), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_path",)),
    ]
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = BaseDataset(pipeline=steps, lazy_init=True, test_mode=not training)
    dataset.data_list = [dict(img_path=str(file)) for file in files]
    dataset.serialize_data, dataset._fully_initialized = False, True
    guard(dataset, training, path="d")
    return dataset


def test_training_passes_over_it(tmp_path: Path) -> None:
    (good,), (bad, _) = save(tmp_path, [(50, 60)]), save(tmp_path, LEFT_OUT)
    dataset = data_set([bad, good], training=True)
    try_pipeline(dataset, "d")  # one works
    assert {dataset[0]["data_samples"].img_path for _ in range(5)} == {str(good)}
    pipeline = dataset.pipeline
    assert pipeline.transforms[0].files == {str(bad)}
    assert pipeline.in_a_row == 0
    for _ in range(MAX_UNREADABLE - 1):
        assert pipeline(dict(img_path=str(bad))) is None
    with pytest.raises(UserError, match=r"d\.pipeline: Resize: .*3000x4\.png"):
        pipeline(dict(img_path=str(bad)))


@pytest.mark.parametrize("training", [True, False])
def test_a_step_that_takes_no_image_is_an_error(tmp_path: Path, training: bool) -> None:
    with pytest.raises(UserError, match=r"^d\.pipeline: Resize: "):
        try_pipeline(data_set(save(tmp_path, LEFT_OUT), training), "d")


def test_a_test_names_it(tmp_path: Path) -> None:
    files = save(tmp_path, [(50, 60), *LEFT_OUT])
    dataset = data_set(files, training=False)
    try_pipeline(dataset, "d")
    with pytest.raises(UserError, match=r"d\.pipeline: Resize: .*, of .*3000x4\.png \(--debug"):
        dataset[1]


def test_steps_that_leave_nothing(tmp_path: Path) -> None:
    dataset = data_set(save(tmp_path, [(50, 60)]), training=True)
    dataset.pipeline.transforms.append(lambda results: None)
    with pytest.raises(UserError, match=r"d\.pipeline: no image is left by its steps"):
        try_pipeline(dataset, "d")

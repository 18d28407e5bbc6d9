"""Bad files given to the tools that measure, draw and export: a line, before the work."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ltm_mm.analysis.benchmark.run import run_benchmark
from ltm_mm.analysis.plan.run import make_plan
from ltm_mm.engine.build import named_config
from ltm_mm.engine.photos import read_photos
from ltm_mm.errors import UserError
from ltm_mm.export.run import export
from ltm_mm.report import write_report
from ltm_mm.visualization import visualize
from tests.engine.conftest import SHAPES_CONFIG, line_of

MODEL = "ltm-efficientvit-b0"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    return folder


def a_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


def another_model(file: Path) -> None:
    torch.save({"state_dict": nn.Conv2d(3, 4, 1).state_dict()}, file)


def swin_in_name_only(file: Path) -> None:
    keys = ["patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"]
    keys.append("layers.0.downsample.reduction.weight")
    torch.save({key: torch.zeros(5, 5) for key in keys}, file)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (a_zip, "not a PyTorch checkpoint, or a truncated one"),
        (another_model, "is of another architecture than"),
        (swin_in_name_only, "has keys of official Swin, but not its shapes"),
        (Path.mkdir, "is a folder: name the file in it"),
        (None, "does not exist"),
    ],
)
@pytest.mark.parametrize("tool", ["export", "plan", "visualize"])
def test_checkpoints(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photos: Path,
    tool: str,
    make: Callable[[Path], None] | None,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(tmp_path / "some.pth")
    if make:
        make(Path(file))
    calls = {
        "export": lambda: export(MODEL, file, size=(64, 64)),
        "plan": lambda: make_plan(MODEL, 0.7, checkpoint=file, photos=str(photos)),
        "visualize": lambda: visualize(SHAPES_CONFIG, str(photos), file),
    }
    line = line_of(capsys, calls[tool])
    assert expected in line
    assert file in line


def test_photos_to_plan_with(capsys: pytest.CaptureFixture, tmp_path: Path, photos: Path) -> None:
    """A bad one of several is left out; one that is alone is an error."""
    (photos / "b.jpg").write_bytes(b"no photo")
    (image,) = read_photos(named_config(MODEL), sorted(photos.iterdir()), (64, 64), "cpu")
    assert image.shape == (1, 3, 64, 64)
    assert f"left out: {photos / 'b.jpg'} is damaged or no photo" in capsys.readouterr().err
    (photos / "a.png").unlink()
    weights = tmp_path / "weights.pth"
    from ltm_mm.models.backbones.efficientvit import LTMEfficientViT

    torch.save(LTMEfficientViT("b0", keep=None).state_dict(), weights)
    line = line_of(
        capsys,
        lambda: make_plan(
            MODEL, 0.7, str(weights), str(photos), size=(64, 64), out=str(tmp_path / "out")
        ),
    )
    assert f"{photos / 'b.jpg'} is damaged or no photo" in line


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_photo_of_16_bits_is_the_photo(tmp_path: Path, suffix: str) -> None:
    """By its upper eight bits, not clipped to white."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    files = [tmp_path / f"{bits}.{suffix}" for bits in (8, 16)]
    Image.fromarray(pixels).save(files[0])
    Image.fromarray(pixels.astype(np.uint16) << 8).save(files[1])
    eight, sixteen = read_photos(named_config(MODEL), files, (64, 64), "cpu")
    torch.testing.assert_close(sixteen, eight, rtol=0, atol=0)


def test_a_photo_of_floating_point_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif .*its pixels are floating-point numbers"):
        read_photos(named_config(MODEL), [tmp_path / "a.tif"], (64, 64), "cpu")


@pytest.mark.parametrize("dpi", [0, -5, 100_000])
def test_dpi(capsys: pytest.CaptureFixture, photos: Path, dpi: int) -> None:
    line = line_of(capsys, lambda: visualize(SHAPES_CONFIG, str(photos), dpi=dpi))
    assert f"--dpi must lie in 10..1200, got {dpi}" in line


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda file, _: run_benchmark(MODEL, out=file), "--out {file} is a file: name a folder"),
        (lambda file, _: make_plan(MODEL, 0.7, out=file), "--out {file} is a file: name a folder"),
        (lambda file, folder: export(MODEL, out=folder), "--out {folder} is a folder: name a file"),
        (
            lambda file, _: export(MODEL, out=f"{file}/x.onnx"),
            "--out {file} is a file: name a folder",
        ),
        (
            lambda file, folder: visualize(SHAPES_CONFIG, folder, out_dir=file),
            "--out-dir {file} is a file: name a folder",
        ),
    ],
)
def test_outputs_are_looked_at_first(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photos: Path,
    call: Callable[[str, str], object],
    expected: str,
) -> None:
    for builder in ("analysis.benchmark.run.build_models", "export.run.model_builder"):
        monkeypatch.setattr(f"ltm_mm.{builder}", lambda *_, **__: pytest.fail("built"))
    paths = {"file": str(tmp_path / "file"), "folder": str(photos)}
    Path(paths["file"]).touch()
    line = line_of(capsys, lambda: call(*paths.values()))
    assert expected.format(**paths) in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_someone_else(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    line = line_of(capsys, lambda: run_benchmark(MODEL, out=str(tmp_path / "out")))
    assert "is not yours to write to" in line


def test_tables_are_printed_before_files_are_written(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr("ltm_mm.analysis.benchmark.run.save_json", full)
    with pytest.raises(OSError, match="No space left"):
        run_benchmark(MODEL, size=(32, 32), rounds=1, out=str(tmp_path))
    assert "| model | params | GMACs |" in capsys.readouterr().out


def test_a_report_into_a_folder(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "x.html").mkdir()
    (tmp_path / "config.py").write_text("model = dict(type='X')")
    line = line_of(
        capsys, lambda: write_report([str(tmp_path)], out=str(tmp_path / "x.html"), num_images=0)
    )
    assert "x.html is a folder: name a file" in line

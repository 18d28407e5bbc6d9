"""Images of other than three channels: the tools that measure and export, and RGB weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from ltm_mm.analysis.benchmark.run import run_benchmark
from ltm_mm.analysis.plan.run import make_plan
from ltm_mm.checkpoints import load_backbone, load_into
from ltm_mm.engine.build import channels_of
from ltm_mm.engine.photos import read_photos
from ltm_mm.export.run import export
from ltm_mm.models.backbones.swin import LTMSwin

CONFIG = """
model = dict(
    data_preprocessor=dict(mean=[100.0] * 6, std=[50.0] * 6),
    backbone=dict(
        type='ltm_mm.LTMSwin', in_channels=6, embed_dims=16, depths=(1, 1), num_heads=(1, 2),
        strides=(4, 2), out_indices=(0, 1), keep=0.5))
test_pipeline = [dict(type='LoadImageFromFile', color_type='unchanged',
                      imdecode_backend='tifffile'),
                 dict(type='PackSix')]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "six.py"
    file.write_text(CONFIG)
    return str(file)


def tiny(channels: int) -> LTMSwin:
    return LTMSwin(
        in_channels=channels,
        embed_dims=16,
        depths=(1, 1),
        num_heads=(1, 2),
        strides=(4, 2),
        out_indices=(0, 1),
        keep=None,
    )


def test_benchmark(config: str, tmp_path: Path) -> None:
    (row,) = run_benchmark(config, size=(32, 32), rounds=1, out=str(tmp_path / "out"))
    assert len(row.forward) == 1
    assert [channels_of(tiny(channels)) for channels in (1, 3, 6)] == [1, 3, 6]


def test_plan(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_plan(config, 1.0, size=(56, 56), rounds=1, out=str(tmp_path / "out"))
    assert "chosen: time" in capsys.readouterr().out


@pytest.mark.slow
def test_export(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export(config, size=(64, 64), format="torch", out=str(tmp_path / "six.pt2"), check=True)
    assert "image (batch, 6, height, width)" in capsys.readouterr().out


def test_photos_of_six_channels(config: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    from mmengine.registry import TRANSFORMS

    @TRANSFORMS.register_module(name="PackSix", force=True)
    class Pack:
        def __call__(self, results: dict) -> dict:
            from mmengine.structures import BaseDataElement

            return {
                "inputs": torch.from_numpy(results["img"].astype(np.float32)).permute(2, 0, 1),
                "data_samples": BaseDataElement(),
            }

    pixels = np.arange(8 * 8 * 6, dtype=np.uint16).reshape(8, 8, 6)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    cfg = Config.fromfile(config)
    (image,) = read_photos(cfg, [tmp_path / "a.tif"], None, "cpu", backbone=True, channels=6)
    expected = (torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] - 100) / 50
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_weights_for_rgb(channels: int) -> None:
    """A grey image in all channels gives what it gave in RGB; timm's rule."""
    rgb, widened = tiny(3), tiny(channels)
    report = load_backbone(widened, rgb.state_dict())
    assert not report.fresh
    weight, wanted = rgb.patch_embed.projection.weight, widened.patch_embed.projection.weight
    repeated = weight.repeat(1, 2, 1, 1)[:, :channels] * 3 / channels
    torch.testing.assert_close(wanted, weight.sum(1, keepdim=True) if channels == 1 else repeated)
    with pytest.raises(ValueError, match=rf"checkpoint \(16, 3, 4, 4\), model \(16, {channels}, "):
        load_into(widened, rgb.state_dict(), strict=True)

"""From a config to a model: sharing, refusals; photos as the test pipeline leaves them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltm_mm.analysis.fidelity.tool import run_fidelity
from ltm_mm.engine import load_config, photos
from ltm_mm.engine.build import model_builder, named_config
from ltm_mm.export.run import export
from ltm_mm.visualization import visualize
from tests.conftest import ROOT
from tests.engine.conftest import SHAPES_CONFIG, line_of

SEGMENTOR = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
# Its own data's pipeline, without the data.
MASK_RCNN = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector's."""
    file = tmp_path_factory.mktemp("checkpoints") / "maskrcnn.pth"
    torch.save({"state_dict": model_builder(load_config(SHAPES_CONFIG))().state_dict()}, file)
    return str(file)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    file = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(file)
    return str(file)


@pytest.mark.parametrize(
    "call",
    [
        lambda weights, photo, out: visualize(SEGMENTOR, photo, weights, out_dir=out),
        lambda weights, photo, out: run_fidelity(SEGMENTOR, weights, photo, out=out),
        lambda weights, photo, out: export(
            SEGMENTOR, weights, format="torch", whole_model=True, out=f"{out}.pt2"
        ),
    ],
    ids=["visualize", "fidelity", "export"],
)
def test_a_checkpoint_of_another_model_is_refused(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    checkpoint: str,
    photo: str,
    call: Callable[[str, str, str], object],
) -> None:
    line = line_of(capsys, lambda: call(checkpoint, photo, str(tmp_path / "out")))
    assert "maskrcnn.pth: the checkpoint lacks" in line
    assert "of EncoderDecoder, which would be untrained: decode_head." in line
    assert not list(tmp_path.glob("out*"))


def test_a_backbone_s_checkpoint_may_be_drawn(tmp_path: Path, photo: str) -> None:
    backbone = model_builder(load_config(SEGMENTOR), backbone=True)()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    assert visualize(SEGMENTOR, photo, str(tmp_path / "backbone.pth"), out_dir=str(tmp_path))


def test_models_share_their_parameters() -> None:
    build = model_builder(load_config(SEGMENTOR))
    plain, merged = (dict(build(keep).named_parameters()) for keep in (None, "balanced"))
    assert set(plain) <= set(merged)
    assert all(merged[name] is parameter for name, parameter in plain.items())


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SHAPES_CONFIG, (128, 160)),
        (MASK_RCNN, (800, 1216)),
        (SEGMENTOR, (107, 160)),
        ("ltm-swin-t", (800, 1216)),
    ],
)
def test_size_is_that_of_the_test_pipeline(config: str, size: tuple[int, int]) -> None:
    assert photos.test_size(named_config(config)) == size


def test_a_backbone_s_photo_is_what_the_model_gives_it(photo: str) -> None:
    """Through the test pipeline: as the detector's own data preprocessor leaves it."""
    cfg = load_config(SHAPES_CONFIG)
    (sample,) = photos.read_photos(cfg, [Path(photo)], None, "cpu")
    (image,) = photos.read_photos(cfg, [Path(photo)], None, "cpu", backbone=True)
    batch = {key: [value] for key, value in sample.items()}
    expected = model_builder(cfg)().data_preprocessor(batch)["inputs"]
    torch.testing.assert_close(image, expected)

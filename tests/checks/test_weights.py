"""Weights that a config names: refused before anything is built, with their option."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit

from ltm_mm.checks.weights import check_weights, named_weights
from ltm_mm.engine import train
from ltm_mm.engine.build import drop_pretrained
from ltm_mm.errors import UserError
from tests.conftest import ROOT
from tests.engine.conftest import line_of

FORM = dict(type="Pretrained", checkpoint="a.pth")
SWIN = dict(type="ltm_mm.LTMSwin")
RESNET = dict(type="ResNet")
SEGMENTOR = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (dict(backbone=SWIN), {}),
        (dict(backbone=SWIN, pretrained=None), {}),
        (dict(backbone=SWIN, pretrained="a.pth"), {"model.pretrained": "model.pretrained"}),
        (
            dict(backbone=dict(**SWIN, pretrained="a.pth")),
            {"model.backbone.pretrained": "model.backbone.pretrained"},
        ),
        (
            dict(backbone=dict(**SWIN, init_cfg="a.pth")),
            {"model.backbone.init_cfg": "model.backbone.init_cfg"},
        ),
        (
            dict(backbone=dict(**SWIN, init_cfg=FORM)),
            {"model.backbone.init_cfg.checkpoint": "model.backbone.init_cfg"},
        ),
        (
            dict(backbone=dict(**SWIN, init_cfg=dict(type=PretrainedInit, checkpoint="a.pth"))),
            {"model.backbone.init_cfg.checkpoint": "model.backbone.init_cfg"},
        ),
        (
            dict(teacher=dict(backbone=dict(**RESNET, init_cfg=[dict(type="Xavier"), FORM]))),
            {"model.teacher.backbone.init_cfg.1.checkpoint": "model.teacher.backbone.init_cfg"},
        ),
        (dict(backbone=dict(type="TIMMBackbone", pretrained=True)), {}),
        (dict(text=dict(type="CLIP", pretrained="openai")), {}),
    ],
)
def test_what_a_config_names(model: dict, expected: dict[str, str]) -> None:
    cfg = Config(dict(model=model))
    assert {named.option: named.off for named in named_weights(cfg)} == expected
    if expected:
        with pytest.raises(UserError, match=r"names a\.pth, a file that does not exist: set --cfg"):
            check_weights(cfg)
    drop_pretrained(cfg)
    assert not named_weights(cfg)
    check_weights(cfg)


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        (dict(backbone=SWIN, pretrained="open-mmlab://resnet50_v1c"), "model.pretrained"),
        (dict(backbone=SWIN, pretrained="torchvision://resnet50"), "model.pretrained"),
        (dict(backbone=SWIN, pretrained="mmcls://swin_tiny"), None),
        (dict(backbone=dict(type="LTMViT"), pretrained="mmcls://swin_tiny"), "model.pretrained"),
        (dict(backbone=RESNET, pretrained="open-mmlab://resnet50_v1c"), None),
        (
            dict(backbone=dict(**SWIN, init_cfg="open-mmlab://resnet50_v1c")),
            "model.backbone.init_cfg",
        ),
    ],
)
def test_weights_of_another_network(model: dict, refused: str | None) -> None:
    cfg = Config(dict(model=model))
    if refused is None:
        check_weights(cfg)
        return
    line = rf"^{refused} names .* weights of another network than .*{refused}=None to start without"
    with pytest.raises(UserError, match=line):
        check_weights(cfg)


def resnet(folder: Path) -> str:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "resnet50.pth")
    return str(folder / "resnet50.pth")


def cut_short(folder: Path) -> str:
    (folder / "cut.pth").write_bytes(b"PK..")
    return str(folder / "cut.pth")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: "open-mmlab://resnet50_v1c", "weights of another network than ltm_mm.LTMSwin"),
        (lambda folder: str(folder / "no.pth"), "no.pth, a file that does not exist: set"),
        (str, "a folder: set"),
        (resnet, "is of another architecture than LTMSwin"),
        (cut_short, "not a PyTorch checkpoint, or a truncated one"),
    ],
)
@pytest.mark.parametrize("option", ["model.pretrained", "model.backbone.init_cfg"])
def test_the_option_is_named(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    shapes: Path,
    option: str,
    make: Callable[[Path], str],
    expected: str,
) -> None:
    """As a config over mmseg's upernet_r50 has it, whose ``model.pretrained`` stays."""
    changes = {option: make(tmp_path)}
    for split in ("train", "val", "test"):
        changes[f"{split}_dataloader.dataset.data_root"] = str(shapes)
        changes[f"{split}_dataloader.num_workers"] = 0
        changes[f"{split}_dataloader.persistent_workers"] = False
    line = line_of(capsys, lambda: train(SEGMENTOR, str(tmp_path / "w"), cfg_options=changes))
    assert expected in line
    assert f"set --cfg-options {option}=FILE, or {option}=None to start without weights" in line

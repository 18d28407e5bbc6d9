"""The conversion of backbones in configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_mm.checkpoints import load_backbone
from ltm_mm.checkpoints.learned import Learned
from ltm_mm.engine import load_config, parse_keep, use_ltm
from ltm_mm.engine.convert import set_detail
from ltm_mm.errors import UserError
from ltm_mm.registry import MODELS

TIMM = {"type": "TIMMBackbone", "model_name": "efficientvit_b1.r224_in1k"}


def config(backbone: dict, scope: str = "mmdet") -> Config:
    return Config({"default_scope": scope, "model": {"type": "Any", "backbone": backbone}})


@pytest.mark.parametrize(
    ("backbone", "scope"),
    [
        ({"type": "SwinTransformer"}, "mmdet"),
        ({"type": "SwinTransformer"}, "mmseg"),
        ({"type": "mmdet.SwinTransformer"}, "mmseg"),
        ({"type": "SwinTransformer", "_scope_": "mmseg"}, "mmengine"),
    ],
)
def test_swin_is_converted_and_all_else_kept(backbone: dict, scope: str) -> None:
    backbone = {
        **backbone,
        "embed_dims": 128,
        "init_cfg": {"type": "Pretrained", "checkpoint": "x"},
    }
    cfg = config(backbone, scope)
    (line,) = use_ltm(cfg, "fast")
    assert line == f"model.backbone: {backbone['type']} -> ltm_mm.LTMSwin (keep='fast')"
    assert cfg.model.backbone.to_dict() == {**backbone, "type": "ltm_mm.LTMSwin", "keep": "fast"}


def test_lazily_imported_config() -> None:
    from mmdet.models import SwinTransformer

    cfg = config({"type": SwinTransformer})
    assert use_ltm(cfg, None) == [
        "model.backbone: mmdet.SwinTransformer -> ltm_mm.LTMSwin (keep=None)"
    ]
    assert cfg.model.backbone.type == "ltm_mm.LTMSwin"


def test_merging_backbone_gets_the_new_plan() -> None:
    cfg = config({"type": "ltm_mm.LTMSwin", "keep": "light"})
    use_ltm(cfg, "fast")
    assert cfg.model.backbone.keep == "fast"


def test_nested_detector_and_several_backbones() -> None:
    swin = {"type": "mmdet.SwinTransformer"}
    model = {"detector": {"backbone": dict(swin)}, "branches": [{"img_backbone": dict(swin)}]}
    cfg = Config({"model": model})
    assert len(use_ltm(cfg, "light")) == 2
    assert cfg.model.detector.backbone.type == "ltm_mm.LTMSwin"
    assert cfg.model.branches[0].img_backbone.keep == "light"


@pytest.mark.parametrize(
    ("extra", "init_cfg"),
    [
        ({"pretrained": False}, None),
        ({"checkpoint_path": "b1.pt"}, {"type": "Pretrained", "checkpoint": "b1.pt"}),
        (
            {},
            {
                "type": "Pretrained",
                "checkpoint": "https://huggingface.co/timm/efficientvit_b1.r224_in1k"
                "/resolve/main/model.safetensors",
            },
        ),
    ],
)
def test_timm_efficientvit(extra: dict, init_cfg: dict | None) -> None:
    cfg = config({**TIMM, "features_only": True, "out_indices": (1, 2), **extra})
    use_ltm(cfg, "balanced")
    expected = {
        "type": "ltm_mm.LTMEfficientViT",
        "arch": "b1",
        "out_indices": (1, 2),
        "keep": "balanced",
    }
    assert cfg.model.backbone.to_dict() == expected | ({"init_cfg": init_cfg} if init_cfg else {})
    MODELS.build(cfg.model.backbone)  # the keywords are the counterpart's


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"model_name": "mobilevit_xxs"}, {"arch": "xxs", "out_indices": (0, 1, 2, 3, 4)}),
        (
            {"model_name": "mobilevit_xs.cvnets_in1k", "out_indices": (3, 4), "in_channels": 4},
            {"arch": "xs", "out_indices": (3, 4), "in_channels": 4},
        ),
        (
            {"model_name": "vit_tiny_patch16_224", "dynamic_img_size": True, "depth": 4},
            {"arch": "vit_tiny_patch16_224", "out_indices": 3, "num_layers": 4},
        ),
        (
            {"model_name": "mobilevit_xxs", "out_indices": (-3, -1), "norm_layer": "BN"},
            {"arch": "xxs", "out_indices": (-3, -1), "norm_layer": "BN"},
        ),
        (
            {"model_name": "vit_tiny_patch16_224", "depth": 4, "out_indices": (-1, -3)}
            | {"drop_rate": 0.2, "norm_layer": "LN"},
            {"arch": "vit_tiny_patch16_224", "num_layers": 4, "out_indices": (-1, -3)}
            | {"norm_layer": "LN"},
        ),
        (
            {"model_name": "vit_tiny_patch16_224.augreg_in21k", "out_indices": (5, 11)},
            {"arch": "vit_tiny_patch16_224", "out_indices": (5, 11)},
        ),
    ],
)
def test_timm_mobilevit_and_vit_give_timms_maps(backbone: dict, expected: dict) -> None:
    backbone = {"type": "TIMMBackbone", "pretrained": False, "features_only": True, **backbone}
    cfg = config(dict(backbone), "mmseg")
    use_ltm(cfg, None)
    kind = "ltm_mm.LTMViT" if "vit_t" in backbone["model_name"] else "ltm_mm.LTMMobileViT"
    assert cfg.model.backbone.to_dict() == {"type": kind, "keep": None, **expected}
    mine = MODELS.build(cfg.model.backbone).eval()
    theirs = build_timm(backbone).eval()
    load_backbone(mine, theirs.state_dict())
    x = torch.randn(1, backbone.get("in_channels", 3), 224, 224)
    with torch.no_grad():
        for a, b in zip(mine(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def build_timm(backbone: dict) -> torch.nn.Module:
    """mmseg's ``TIMMBackbone``."""
    from mmseg.models.backbones import TIMMBackbone

    return TIMMBackbone(**{k: v for k, v in backbone.items() if k != "type"})


@pytest.mark.parametrize(
    ("backbone", "scope", "line"),
    [
        ({"type": "ResNet", "depth": 50}, "mmdet", r"model.backbone is ResNet \(50\)"),
        ({"type": "SwinTransformer", "arch": "tiny"}, "mmpretrain", "SwinTransformer of mmdet and"),
        ({"type": "TIMMBackbone", "model_name": "efficientvit_m0"}, "mmseg", "efficientvit_m0"),
        ({"type": "TIMMBackbone", "model_name": "resnet50"}, "mmseg", "resnet50"),
    ],
)
def test_backbone_it_cannot_serve(backbone: dict, scope: str, line: str) -> None:
    cfg = config(backbone, scope)
    before = cfg.to_dict()
    with pytest.raises(UserError, match=line):
        use_ltm(cfg, "balanced")
    assert cfg.to_dict() == before


def test_model_without_backbone() -> None:
    with pytest.raises(UserError, match="has no backbone"):
        use_ltm(Config({"model": {"type": "Any"}}), "balanced")


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("none", None),
        ("balanced", "balanced"),
        ("paper", "paper"),
        ("25", 25),
        ("0.5", 0.5),
        ("(None, None, (None, 25, 9), 0.5)", (None, None, (None, 25, 9), 0.5)),
        ("[49, 25, 16, 9]", [49, 25, 16, 9]),
    ],
)
def test_parse_keep(text: str, keep: object) -> None:
    assert parse_keep(text) == keep
    assert type(parse_keep(text)) is type(keep)


@pytest.mark.parametrize("text", ["blanced", "None", "True", "(7,", "'light'", "__import__('os')"])
def test_parse_keep_refuses(text: str) -> None:
    with pytest.raises(
        UserError, match=r"give none, light, balanced, fast, fastest, paper, a number of"
    ):
        parse_keep(text)


@pytest.mark.parametrize(
    "source",
    [
        "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
        "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    ],
)
def test_installed_config_builds_after_the_conversion(source: str) -> None:
    cfg = load_config(source, {"model.backbone.embed_dims": 24})
    use_ltm(cfg, "balanced")
    backbone = MODELS.build(cfg.model.backbone)
    assert type(backbone).__name__ == "LTMSwin"
    assert backbone.out_channels == (24, 48, 96, 192)


PLAIN, OURS = {"type": "SwinTransformer"}, {"type": "ltm_mm.LTMSwin"}


@pytest.mark.parametrize(
    ("backbone", "plans", "taken"),
    [
        (OURS, [], True),
        (OURS, [None], True),
        (OURS | {"keep": (None, 9)}, [None], True),
        (OURS | {"keep": None}, [None], False),
        (OURS | {"keep": None}, ["fast"], True),
        (OURS, ["none"], False),
        (PLAIN, [None], False),
        (PLAIN, ["none"], False),
        (PLAIN, ["none", "fast"], True),  # as tools/benchmark.py takes them
        ({"type": "ResNet"}, ["fast"], False),
    ],
)
def test_a_detail_needs_a_swin_that_merges(
    tmp_path: Path, backbone: dict, plans: list[str | None], taken: bool
) -> None:
    file = tmp_path / "detail.pth"
    Learned({}, (8,), (1,), "").save(file)
    cfg = config(backbone)
    if taken:
        set_detail(cfg, str(file), *plans)
        assert cfg.model.backbone.detail == str(file)
        return
    with pytest.raises(UserError, match="details are for a merging Swin"):
        set_detail(cfg, str(file), *plans)

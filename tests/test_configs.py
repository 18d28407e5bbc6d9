"""Every config parses, names LTM backbones and keeps what it inherits."""

from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

import ltm_mm  # noqa: F401  before mmdet and mmseg
from ltm_mm.engine import load_config
from ltm_mm.registry import HOOKS, MODELS

CONFIGS = Path(__file__).parent.parent / "configs"
ENTRIES = sorted(path.name for path in CONFIGS.glob("*.py"))
SHAPES = [name for name in ENTRIES if "_shapes" in name]
WITH_IB = [name for name in ENTRIES if name.endswith("_ib.py")]
CLASSIFIERS = [name for name in ENTRIES if "imagenet" in name or "classifier" in name]
BACKBONES = ("LTMSwin", "LTMEfficientViT", "LTMMobileViT", "LTMViT")
PARENTS = {
    "ltm_swin_maskrcnn.py": "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "ltm_swin_upernet.py": (
        "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
    ),
}


def _without_scopes(node: object) -> object:
    """A config without the ``_scope_`` marks that mmengine leaves in inherited dicts."""
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != "_scope_"}
    if isinstance(node, (list, tuple)):
        return [_without_scopes(value) for value in node]
    return node


def test_there_are_entries() -> None:
    expected = {
        f"ltm_{b}_{h}" for b in ("swin", "efficientvit", "vit") for h in ("maskrcnn", "upernet")
    } | {"ltm_mobilevit_ssdlite"}
    assert {name.removesuffix(".py") for name in ENTRIES} >= {
        name + end for name in expected for end in ("", "_shapes")
    }
    families = ("swin", "efficientvit", "mobilevit", "vit")
    assert {name.removesuffix(".py") for name in CLASSIFIERS} == {
        *(f"ltm_{family}_imagenet" for family in families),
        "ltm_swin_classifier_shapes",
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_parses(name: str) -> None:
    cfg = load_config(CONFIGS / name)
    assert cfg.model.backbone.type in [f"ltm_mm.{name}" for name in BACKBONES]
    assert cfg.model.backbone.keep == ("paper" if "imagenet" in name else "balanced")
    head = (CONFIGS / name).read_text().partition("_base_")[0]
    assert f"tools/train.py configs/{name}" in head, "the header states the command"


@pytest.mark.parametrize("name", ENTRIES)
def test_channels_fit(name: str) -> None:
    model = load_config(CONFIGS / name).model
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope("ltm_mm"):
        channels = MODELS.build(model.backbone).out_channels
    if name in CLASSIFIERS:
        assert [model.head.in_channels] == list(channels)
    elif "neck" in model:
        assert list(model.neck.in_channels) == list(channels)
    else:
        assert list(model.decode_head.in_channels) == list(channels)
        assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


@pytest.mark.parametrize("name", PARENTS)
def test_differs_from_its_parent_in_the_backbone_alone(name: str) -> None:
    cfg = load_config(CONFIGS / name)
    parent = load_config(PARENTS[name])
    parent.model.backbone.update(type="ltm_mm.LTMSwin", keep="balanced")
    assert _without_scopes(cfg.to_dict()) == _without_scopes(parent.to_dict())


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_configs_need_nothing_from_outside(name: str) -> None:
    cfg = load_config(CONFIGS / name)
    assert cfg.model.backbone.get("init_cfg") is None
    assert cfg.load_from is None
    assert cfg.randomness.seed is not None
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type.startswith("ltm_mm.Shapes")
    assert "SyncBN" not in cfg.pretty_text


@pytest.mark.parametrize("name", WITH_IB)
def test_ib_configs_add_the_loss_and_nothing_else(name: str) -> None:
    cfg, plain = load_config(CONFIGS / name), load_config(CONFIGS / name.replace("_ib", ""))
    (hook,) = cfg.pop("custom_hooks")
    assert vars(HOOKS.build(hook))["weight"] == hook.weight == 0.1
    assert (hook.bound, hook.warmup) == ("paper", 0.3)
    assert not plain.pop("custom_hooks", None)
    assert cfg.to_dict() == plain.to_dict()


def test_data_root_of_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", "somewhere/else/")
    cfg = load_config(CONFIGS / "ltm_swin_maskrcnn_fruits_nuts.py")
    assert cfg.train_dataloader.dataset.dataset.data_root == "somewhere/else/"
    assert cfg.test_dataloader.dataset.data_root == "somewhere/else/"
    assert cfg.val_evaluator.ann_file == "somewhere/else/annotations/instances_val.json"
    assert cfg.model.roi_head.bbox_head.num_classes == 3

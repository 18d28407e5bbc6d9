"""Every config parses, names LTM backbones and keeps what it inherits."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import ltm_mm  # noqa: F401  before mmdet and mmseg
from ltm_mm.compat.__main__ import LINE
from ltm_mm.engine import load_config
from ltm_mm.registry import HOOKS, MODELS

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
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


def _recipe(cfg: Config) -> dict:
    """What a config says, without its variables, the backbone and mmengine's ``_scope_`` marks."""
    keys = set(inspect.signature(Runner.__init__).parameters) | {"tta_model", "tta_pipeline"}
    recipe = {key: value for key, value in cfg.to_dict().items() if key in keys}
    recipe["model"].pop("backbone")
    recipe["model"].pop("pretrained", None)
    recipe.pop("data_preprocessor", None)  # mmseg's copy of the model's
    return dict(_without_scopes(recipe))


def _without_scopes(node: object) -> object:
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
    assert _recipe(cfg) == _recipe(parent)
    parent.model.backbone.update(type="ltm_mm.LTMSwin", keep="balanced")
    assert cfg.model.backbone.init_cfg.checkpoint == parent.model.backbone.init_cfg.checkpoint
    with DefaultScope.overwrite_default_scope("ltm_mm"), torch.device("meta"):
        mine, theirs = MODELS.build(cfg.model.backbone), MODELS.build(parent.model.backbone)
    assert repr(mine) == repr(theirs)
    assert mine.plan == theirs.plan


OPEN = """
import sys
from mmengine.config import Config
for path in sys.argv[1:]:
    backbone = Config.fromfile(path).model.backbone
    print(path.rpartition("/")[2], backbone.type, backbone.keep)
"""


def _alone(code: str, *arguments: object) -> str:
    """What code prints in an interpreter for which `python -m ltm_mm.compat install` was run."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LINE + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_plain_mmengine_opens_every_config() -> None:
    opened = _alone(OPEN, *(CONFIGS / name for name in ENTRIES)).splitlines()
    expected = []
    for name in ENTRIES:
        backbone = load_config(CONFIGS / name).model.backbone
        expected.append(f"{name} {backbone.type} {backbone.keep}")
    assert opened == expected


# mmdet's and mmseg's own ways to a model, in a program that never imports ltm_mm.
INFER = """
import sys
import torch
import numpy as np
photo = np.full((64, 96, 3), 128, np.uint8)
for path in sys.argv[1:]:
    if "upernet" in path:
        from mmseg.apis import MMSegInferencer, init_model
        model = init_model(path, device="cpu")
        result = MMSegInferencer(path, device="cpu", scope="mmseg")(photo)["predictions"].shape
    else:
        from mmdet.apis import DetInferencer, init_detector
        model = init_detector(path, device="cpu")
        result = sorted(DetInferencer(path, device="cpu")(photo)["predictions"][0])
    print(path.rpartition("/")[2], type(model.backbone).__name__, result)
"""


def _expected(name: str) -> str:
    family = name.split("_")[1]
    kind = {c.removeprefix("LTM").lower(): c for c in BACKBONES}[family]
    boxes = ["bboxes", "labels", "scores"]
    masks = [] if "ssdlite" in name else ["masks"]
    return f"{name} {kind} {(64, 96) if 'upernet' in name else sorted(boxes + masks)}"


def test_inferencers_of_mmdet_and_mmseg() -> None:
    names = [name for name in SHAPES if name not in CLASSIFIERS and name not in WITH_IB]
    printed = _alone(INFER, *(CONFIGS / name for name in names)).splitlines()
    lines = [line for line in printed if line.startswith("ltm_")]
    assert lines == [_expected(name) for name in names]


@pytest.mark.slow
def test_inferencers_at_full_width(tmp_path: Path) -> None:
    """Weights of the internet left out: a config of its own over each shipped one."""
    names = [n for n in ENTRIES if n not in {*SHAPES, *CLASSIFIERS, *WITH_IB}]
    for name in names:
        (tmp_path / name).write_text(
            f"_base_ = {str(CONFIGS / name)!r}\nmodel = dict(backbone=dict(init_cfg=None))\n"
        )
    printed = _alone(INFER, *(tmp_path / name for name in names)).splitlines()
    lines = [line for line in printed if line.startswith("ltm_")]
    assert lines == [_expected(name) for name in names]


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

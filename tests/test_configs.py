"""Every config parses, names LTM backbones and keeps what it inherits."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
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
from tests.conftest import ROOT

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
def test_parses_and_channels_fit(name: str) -> None:
    cfg = load_config(CONFIGS / name)
    assert cfg.model.backbone.type in [f"ltm_mm.{name}" for name in BACKBONES]
    assert cfg.model.backbone.keep == ("paper" if "imagenet" in name else "balanced")
    head = (CONFIGS / name).read_text().partition("_base_")[0]
    assert f"tools/train.py configs/{name}" in head, "the header states the command"
    if "_shapes" in name:
        needs_nothing_from_outside(cfg)
    model = cfg.model
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope("ltm_mm"), torch.device("meta"):
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


SOME = ["ltm_swin_maskrcnn_shapes.py", "ltm_vit_upernet.py", "ltm_efficientvit_imagenet.py"]


@pytest.mark.parametrize(
    "names", [SOME, pytest.param(ENTRIES, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_plain_mmengine_opens_configs(names: list[str]) -> None:
    opened = _alone(OPEN, *(CONFIGS / name for name in names)).splitlines()
    expected = []
    for name in names:
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
    masks = [] if "ssdlite" in name or "fasterrcnn" in name else ["masks"]
    return f"{name} {kind} {(64, 96) if 'upernet' in name else sorted(boxes + masks)}"


@pytest.mark.slow
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


def needs_nothing_from_outside(cfg: Config) -> None:
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


OWN_DATA = [name for name in ENTRIES if "fruits_nuts" in name or "finetune" in name]


@pytest.mark.parametrize("name", OWN_DATA)
def test_own_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block has all that is a user's own, and every epoch is validated."""
    monkeypatch.setenv("DATA_ROOT", "somewhere/else/")
    text = (CONFIGS / name).read_text()
    first = text.partition("_base_")[2].split("\n\n")[1]
    for key in ("data_root", "classes", "image_size", "batch_size", "epochs"):
        assert f"\n{key} = " in f"\n{first}", key
    cfg = load_config(CONFIGS / name)
    train, val = cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset
    assert train.data_root == val.data_root == "somewhere/else/"
    assert cfg.test_dataloader.dataset == val
    assert (train.data_prefix, train.get("ann_file")) != (val.data_prefix, val.get("ann_file"))
    assert cfg.train_cfg.type == "EpochBasedTrainLoop"
    assert cfg.train_cfg.val_interval == 1
    last = cfg.param_scheduler[-1]
    assert last.T_max == last.end == cfg.train_cfg.max_epochs
    hook = cfg.default_hooks.checkpoint
    assert (hook.interval, hook.get("by_epoch", True)) == (1, True)
    heads = [node for node in _dicts(cfg.model) if "num_classes" in node]
    assert {head["num_classes"] for head in heads} == {len(val.metainfo.classes)}
    steps = [*_dicts(train.pipeline), *_dicts(val.pipeline)]
    sizes = {node["scale"] for node in steps if node["type"] == "Resize"}
    assert sizes == {cfg.image_size}
    if "upernet" in name:
        assert hook.save_best == "mIoU"
    else:
        metrics = cfg.val_evaluator.metric
        best = "coco/segm_mAP" if "segm" in metrics else "coco/bbox_mAP"
        assert hook.save_best == best
        assert cfg.val_evaluator.ann_file == "somewhere/else/annotations/instances_val.json"
        with_mask = [n.get("with_mask", False) for n in _dicts(train.pipeline) if "with_bbox" in n]
        assert with_mask == ["segm" in metrics]


def _dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from _dicts(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


@pytest.mark.parametrize("switch", [False, True])
def test_one_switch_for_label_zero(switch: bool, tmp_path: Path) -> None:
    for name in OWN_DATA:
        if "upernet" not in name:
            continue
        text = (CONFIGS / name).read_text().replace('_base_ = "', f'_base_ = "{CONFIGS}/')
        text = text.replace("reduce_zero_label = False", f"reduce_zero_label = {switch}")
        (tmp_path / name).write_text(text)
        cfg = load_config(tmp_path / name)
        values = [n["reduce_zero_label"] for n in _dicts(cfg.to_dict()) if "reduce_zero_label" in n]
        assert set(values) == {switch}
        assert len(values) >= 6, "data sets and loading steps of three splits"


@pytest.mark.parametrize("name", [name for name in OWN_DATA if "finetune" in name])
def test_fine_tuning_starts_from_weights_of_the_same_model(name: str) -> None:
    """Only the last layers, whose shapes hang on the classes, differ from the source's model."""
    source = (
        "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
        if "upernet" in name
        else "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py"
    )
    cfg, parent = load_config(CONFIGS / name), load_config(source)
    assert cfg.load_from.startswith("https://")
    assert cfg.model.backbone.init_cfg is None
    states = []
    for each in (cfg, parent):
        each.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope(each.default_scope):
            states.append({k: v.shape for k, v in MODELS.build(each.model).state_dict().items()})
    mine, theirs = states
    assert set(mine) <= set(theirs)
    differ = {key.rpartition(".")[0] for key in mine if mine[key] != theirs[key]}
    expected = {
        "decode_head.conv_seg",
        "auxiliary_head.conv_seg",
        "roi_head.bbox_head.fc_cls",
        "roi_head.bbox_head.fc_reg",
        "roi_head.mask_head.conv_logits",
    }
    assert differ == {key for key in expected if f"{key}.weight" in mine}


def test_boxes_only_is_mask_rcnn_without_masks() -> None:
    faster, mask = (load_config(CONFIGS / f"ltm_swin_{n}rcnn.py") for n in ("faster", "mask"))
    states = []
    for cfg in (faster, mask):
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
            states.append({k: v.shape for k, v in MODELS.build(cfg.model).state_dict().items()})
    assert states[0] == {k: v for k, v in states[1].items() if "mask_head" not in k}
    for key in ("optimizer", "paramwise_cfg"):
        assert faster.optim_wrapper[key] == mask.optim_wrapper[key]

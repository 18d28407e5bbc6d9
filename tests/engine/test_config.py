"""Configs by file and by package, and options that would silently change nothing."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from ltm_mm.engine import load_config
from ltm_mm.errors import UserError
from tests.conftest import ROOT

MASK_RCNN = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
UPERNET = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"


@pytest.mark.parametrize(
    ("source", "head"), [(MASK_RCNN, "roi_head"), (UPERNET, "decode_head"), (UPERNET[:-3], "type")]
)
def test_config_of_installed_package(source: str, head: str) -> None:
    cfg = load_config(source)
    assert cfg.model.backbone.type == "SwinTransformer"
    assert head in cfg.model


def without_scope(node: object) -> object:
    """A config without the marks of the package that its parts come from."""
    if isinstance(node, dict):
        return {k: without_scope(v) for k, v in node.items() if k != "_scope_"}
    return [without_scope(v) for v in node] if isinstance(node, list) else node


@pytest.mark.parametrize("base", [MASK_RCNN, UPERNET])
def test_base_of_installed_package_equals_the_config_itself(tmp_path: Path, base: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"_base_ = {base!r}\nmodel = dict(backbone=dict(drop_path_rate=0.5))\n")
    mine, theirs = load_config(file), load_config(base)
    theirs.model.backbone.drop_path_rate = 0.5
    assert without_scope(mine.to_dict()) == theirs.to_dict()


def test_table_of_mmengine_is_put_back(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for base, works in ((UPERNET, True), ("mmseg::no/such.py", False)):
        file.write_text(f"_base_ = {base!r}\n")
        with nullcontext() if works else pytest.raises(UserError):
            load_config(file)
        assert MODULE2PACKAGE["mmseg"] == "mmsegmentation"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_of_ours_loads(path: Path) -> None:
    assert load_config(path).model.backbone.type.startswith("ltm_mm.LTM")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.backbone.keep", "fast"),
        ("model.backbone.init_cfg", None),
        ("model.backbone.init_cfg.checkpoint", "swin.pth"),
        ("train_dataloader.dataset.pipeline.2.scale", (64, 64)),
        ("train_dataloader.dataset.indices", 8),
        ("optim_wrapper.clip_grad.max_norm", 1.0),
        ("randomness.seed", 3),
        ("env_cfg.dist_cfg.backend", "gloo"),
        ("work_dir", "elsewhere"),
        ("find_unused_parameters", True),
    ],
)
def test_option_is_set(key: str, value: object) -> None:
    node: object = load_config(MASK_RCNN, {key: value})
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == value


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("modle.backbone.keep", "no 'modle' in the config; did you mean model?"),
        ("model.backbon.keep", "no 'backbon' in model; did you mean backbone?"),
        ("model.backbone.depths.7", "model.backbone.depths is a list of 4"),
        ("model.backbone.depths.two", "continue with an index from 0 to 3"),
        ("model.backbone.embed_dims.x", "model.backbone.embed_dims is 96, which has nothing below"),
        ("model.brand.new.part", "no 'brand' in model"),
        ("data_root", "set what it went into: train_dataloader.dataset.data_root, val_dataloader"),
        ("loud_from", "did you mean load_from"),
    ],
)
def test_option_that_names_nothing(key: str, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        load_config(MASK_RCNN, {key: 1})


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "configs/ltm_swin_maskrcn.py",
            "does not exist; did you mean configs/ltm_swin_maskrcnn.py",
        ),
        ("nowhere/at_all.py", "nowhere/at_all.py does not exist$"),
        ("mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_cocoo.py", f"did you mean {MASK_RCNN}"),
        ("mmfoo::a.py", "the package 'mmfoo' is not installed"),
        ("torch::a.py", "the installed torch brings no configs"),
    ],
)
def test_no_such_config(monkeypatch: pytest.MonkeyPatch, source: str, line: str) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=line):
        load_config(source)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model = dict(\n", "never closed"),
        ("_base_ = 'gone.py'\n", "gone.py"),
        ("_base_ = 'mmdet::swin/gone.py'\n", "gone.py"),
        ("model = dict(depth=undefined)\n", "undefined"),
    ],
)
def test_config_that_cannot_be_read(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_load_config_is_mmengine_s_config() -> None:
    assert isinstance(load_config(MASK_RCNN), Config)

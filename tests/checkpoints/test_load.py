"""Whole detectors and backbones: everything loads, merging starts fresh, the rest is said."""

import logging
import re
from copy import deepcopy

import mmdet.models  # noqa: F401  (registers its parts)
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.runner import save_checkpoint
from torch import Tensor, nn
from torch.testing import assert_close

from ltm_mm.checkpoints import load, load_backbone, load_into, to_backbone
from ltm_mm.checkpoints.detect import unwrap
from ltm_mm.models.backbones import LTMEfficientViT, LTMSwin

from .tiny import TINY, randomize

KEEP = (None, (None, 9), (9, 4))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """What is logged: (level, line)."""
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(load, "print_log", lambda line, _logger, level: said.append((level, line)))
    return said


def mask_rcnn(backbone: dict, num_classes: int = 3) -> nn.Module:
    """mmdet's Mask R-CNN, a few channels wide."""
    roi = {"type": "SingleRoIExtractor", "out_channels": 8, "featmap_strides": [4, 8, 16]}
    box = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
    head = {"in_channels": 8, "num_classes": num_classes}
    coder = {"type": "DeltaXYWHBBoxCoder"}
    anchors = {"type": "AnchorGenerator", "scales": [8], "ratios": [1.0], "strides": [4, 8, 16]}
    nms = {"type": "nms", "iou_threshold": 0.7}
    rpn_test = {"nms_pre": 50, "max_per_img": 20, "nms": nms, "min_bbox_size": 0}
    rcnn_test = {"score_thr": 0.0, "nms": nms, "max_per_img": 10, "mask_thr_binary": 0.5}
    return MODELS.build(
        ConfigDict(
            type="mmdet.MaskRCNN",
            backbone=TINY | backbone,
            neck={"type": "FPN", "in_channels": [8, 16, 32], "out_channels": 8, "num_outs": 3},
            rpn_head={"type": "RPNHead", "in_channels": 8, "feat_channels": 8,
                      "anchor_generator": anchors, "bbox_coder": coder},
            roi_head={
                "type": "StandardRoIHead",
                "bbox_roi_extractor": roi | {"roi_layer": box},
                "bbox_head": head | {"type": "Shared2FCBBoxHead", "fc_out_channels": 8,
                                     "bbox_coder": coder},
                "mask_roi_extractor": roi | {"roi_layer": box | {"output_size": 14}},
                "mask_head": head | {"type": "FCNMaskHead", "num_convs": 1,
                                     "conv_out_channels": 8},
            },
            train_cfg=None,
            test_cfg={"rpn": rpn_test, "rcnn": rcnn_test},
        )
    )  # fmt: skip


PLAIN = {"type": "mmdet.SwinTransformer"}
LTM = {"type": "ltm_mm.LTMSwin", "keep": KEEP, "detail": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, str]:
    """A plain Mask R-CNN, and its checkpoint as mmengine's runner saves it."""
    model = randomize(mask_rcnn(PLAIN))
    path = str(tmp_path_factory.mktemp("trained") / "epoch_1.pth")
    save_checkpoint({"meta": {"epoch": 1}, "state_dict": model.state_dict()}, path)
    return model, path


def test_a_trained_detector_loads_whole(
    trained: tuple[nn.Module, str], lines: list[tuple[int, str]]
) -> None:
    plain, path = trained
    model = randomize(mask_rcnn(LTM), seed=1)
    before = deepcopy(model.state_dict())
    report = load_into(model, path, strict=True)
    after = model.state_dict()
    fresh = [key for key in after if ".merge." in key]
    assert {key.rpartition(".merge.")[0] for key in fresh} == {
        "backbone.stages.1.blocks.1", "backbone.stages.2.blocks.0", "backbone.stages.2.blocks.1"
    }  # fmt: skip
    assert_close({k: after[k] for k in after if k not in fresh}, dict(plain.state_dict()))
    assert_close({k: after[k] for k in fresh}, {k: before[k] for k in fresh})
    loaded = [key for key in plain.state_dict() if "relative_position_index" not in key]
    assert report == (loaded, fresh, [])
    [(level, line)] = lines
    assert level == logging.INFO
    assert f"{len(loaded)} of {len(loaded + fresh)} tensors loaded from {path}" in line
    assert f"{len(fresh)} merging parameters start fresh (e.g. {fresh[0]})" in line


def test_a_loaded_detector_without_merging_predicts_the_same(
    trained: tuple[nn.Module, str],
) -> None:
    plain, path = trained
    model = mask_rcnn(LTM | {"keep": None})
    load_into(model, path, strict=True)
    x = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    for net in (plain, model):
        net.backbone.eval(), net.eval()
    with torch.no_grad():
        assert_close(model.extract_feat(x), plain.extract_feat(x), rtol=1e-5, atol=1e-5)


def test_a_merged_detector_loads_its_own_checkpoint(
    trained: tuple[nn.Module, str], lines: list[tuple[int, str]]
) -> None:
    saved = randomize(mask_rcnn(LTM))
    model = mask_rcnn(LTM)
    report = load_into(model, {"state_dict": saved.state_dict()}, strict=True)
    assert report.fresh == []
    assert_close(dict(model.state_dict()), dict(saved.state_dict()))
    assert "fresh" not in lines[0][1]


def test_merging_of_another_plan_is_named(lines: list[tuple[int, str]]) -> None:
    saved = randomize(LTMEfficientViT("b0", keep="fast")).state_dict()
    merging = [key for key in saved if key.endswith((".prior_offset", ".log_scale"))]
    assert merging
    assert load_backbone(LTMEfficientViT("b0", keep=None), saved).fresh == []
    unused = "merging parameters of the checkpoint are of another plan and not used"
    assert lines.pop()[1].endswith(f"{len(merging)} {unused}")
    report = load_backbone(LTMEfficientViT("b0", keep=16), saved)
    assert report.fresh == [key for key in merging if key.endswith(".prior_offset")]
    assert {key for key in merging if key.endswith(".log_scale")} <= set(report.loaded)
    assert f"{len(report.fresh)} {unused}" in lines[-1][1]


def test_a_head_for_other_classes_starts_fresh(
    trained: tuple[nn.Module, str], lines: list[tuple[int, str]]
) -> None:
    plain, path = trained
    model = mask_rcnn(LTM, num_classes=5)
    report = load_into(model, path)
    heads = [key for key in report.fresh if ".merge." not in key]
    assert {key.rpartition(".")[0] for key in heads} == {
        "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"
    }  # fmt: skip
    [(level, line)] = lines
    assert level == logging.WARNING
    assert f"{len(heads)} other parameters start fresh and need training (roi_head." in line
    assert "bbox_head.fc_cls.weight: checkpoint (4, 8), model (6, 8)" in line
    assert_close(model.neck.state_dict(), plain.neck.state_dict())
    with pytest.raises(
        ValueError,
        match=r"epoch_1\.pth: .* lacks 6 parameters of MaskRCNN.*fc_cls",
    ):
        load_into(model, path, strict=True)


def test_backbone_weights_go_into_a_whole_model(
    official_weights: dict[str, Tensor], lines: list[tuple[int, str]]
) -> None:
    model = mask_rcnn(LTM)
    neck = deepcopy(model.neck.state_dict())
    load_into(model, {"model": official_weights})
    weight = official_weights["layers.1.blocks.0.mlp.fc1.weight"]
    assert_close(model.backbone.stages[1].blocks[0].ffn.layers[0][0].weight.data, weight)
    assert_close(model.neck.state_dict(), neck)
    [(_, line)] = lines
    assert "output norms start fresh (backbone.norm0.weight" in line
    assert "not used" not in line


def test_the_authors_own_detector_loads(
    trained: tuple[nn.Module, str], official_weights: dict[str, Tensor]
) -> None:
    plain, _ = trained
    heads = {k: v for k, v in plain.state_dict().items() if not k.startswith("backbone.")}
    norms = {k: v for k, v in plain.state_dict().items() if k.startswith("backbone.norm")}
    weights = {f"backbone.{k}": v for k, v in official_weights.items() if "head" not in k}
    model = mask_rcnn(LTM)
    report = load_into(model, {"state_dict": heads | norms | weights}, strict=True)
    assert all(".merge." in key for key in report.fresh)
    assert_close(model.backbone.norm1.bias.data, norms["backbone.norm1.bias"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"depths": (2, 2, 4)},
            r"width 8, blocks \(2, 2, 2\)\) does not fit LTMSwin \(width 8, blocks \(2, 2, 4\)\): "
            r"\d+ keys missing \(stages\.2\.blocks\.2\.",
        ),
        ({"depths": (1, 2, 2)}, r"\d+ keys not in the model \(stages\.0\.blocks\.1\."),
        (
            {"embed_dims": 16},
            r"of another shape \(patch_embed\.projection\.weight: checkpoint \(8, 3, 4, 4\), "
            r"model \(16, 3, 4, 4\)",
        ),
        ({"num_heads": (2, 2, 4)}, r"bias_table: checkpoint \(49, 1\), model \(49, 2\)"),
        ({"qkv_bias": False}, r"6 keys not in the model \(stages.*qkv\.bias"),
        ({"use_abs_pos_embed": True}, r"1 keys missing \(absolute_pos_embed\)"),
    ],
)
def test_weights_of_another_size_are_refused(
    official_weights: dict[str, Tensor], change: dict, line: str
) -> None:
    backbone = randomize(LTMSwin(keep=None, **TINY | change))
    before = deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match=line) as caught:
        load_backbone(backbone, official_weights)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert_close(dict(backbone.state_dict()), dict(before))


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ({"layer1.0.conv1.weight": torch.ones(1)}, "another architecture than LTMSwin: it holds "
         "layer1.0.conv1.weight, the model wants patch_embed"),
        ({"stem.in_conv.conv.weight": torch.ones(1)}, "timm EfficientViT.*another architecture"),
        ({"layers.0.blocks.0.attn.logit_scale": torch.ones(1)}, "Swin V2"),
        ({}, "no weights"),
    ],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused(weights: dict[str, Tensor], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        to_backbone(weights, LTMSwin(keep=None, **TINY))


def test_wrong_prefix(official_weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"no key of the checkpoint starts with .*'neck\.'"):
        to_backbone(official_weights, LTMSwin(keep=None, **TINY), prefix="neck.")


def test_a_detector_of_another_size_leaves_the_model_alone(trained: tuple[nn.Module, str]) -> None:
    model = mask_rcnn(LTM | {"depths": (2, 2, 4), "keep": None})
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"epoch_1\.pth: the checkpoint .* does not fit LTMSwin"):
        load_into(model, trained[1])
    assert_close(dict(model.state_dict()), dict(before))


def test_a_shortened_backbone_takes_the_first_stages(official_weights: dict[str, Tensor]) -> None:
    short = {"depths": (2, 2), "num_heads": (1, 2), "strides": (4, 2), "out_indices": (0, 1)}
    report = load_backbone(LTMSwin(keep=None, **TINY | short), official_weights)
    assert all(re.match(r"norm\d", key) for key in report.fresh)


def test_output_norms_of_other_indices_are_no_error(trained: tuple[nn.Module, str]) -> None:
    backbone = LTMSwin(keep=None, **TINY | {"out_indices": (1,)})
    report = load_backbone(backbone, trained[1])
    assert report.fresh == []
    assert_close(backbone.norm1.weight.data, trained[0].backbone.norm1.weight.data)


def test_init_cfg_loads_a_whole_detectors_backbone(trained: tuple[nn.Module, str]) -> None:
    plain, path = trained
    init = {"type": "Pretrained", "checkpoint": path, "prefix": "backbone."}
    model = mask_rcnn(LTM | {"init_cfg": init})
    model.init_weights()
    weights = model.backbone.state_dict()
    assert_close({k: weights[k] for k in plain.backbone.state_dict()},
                 dict(plain.backbone.state_dict()))  # fmt: skip


def test_heads_see_the_version_they_were_saved_by() -> None:
    seen = []

    class Head(nn.Linear):
        _version = 3

        def _load_from_state_dict(
            self, state: dict, prefix: str, meta: dict, *rest: object
        ) -> None:
            seen.append(meta.get("version"))
            super()._load_from_state_dict(state, prefix, meta, *rest)

    saved = nn.ModuleDict({"backbone": LTMSwin(keep=None, **TINY), "head": Head(2, 2)})
    model = nn.ModuleDict({"backbone": LTMSwin(keep=KEEP, detail=True, **TINY), "head": Head(2, 2)})
    load_into(model, {"state_dict": saved.state_dict()}, strict=True)
    assert seen == [3]


def test_weights_that_learned_with_merging_are_for_merging(
    trained: tuple[nn.Module, str], lines: list[tuple[int, str]]
) -> None:
    """Known by the file's meta, also where its state dict is handed on."""
    content = {"meta": {"ltm_learned": {"weights": True}}, "state_dict": trained[0].state_dict()}
    for weights in (content, unwrap(content)):
        lines.clear()
        load_into(mask_rcnn({"type": "ltm_mm.LTMSwin", "keep": 9}), weights)
        assert all(level == logging.INFO for level, _ in lines)
        load_into(mask_rcnn(PLAIN), weights)
        (warning,) = [line for level, line in lines if level == logging.WARNING]
        assert "learned with merging on, and MaskRCNN merges nothing" in warning


def test_weights_of_a_training_that_diverged_are_refused(trained: tuple[nn.Module, str]) -> None:
    state = deepcopy(trained[0].state_dict())
    state["backbone.norm2.bias"][3] = torch.nan
    with pytest.raises(ValueError, match=r"1 tensors .* not a number.* \(backbone\.norm2\.bias\)"):
        load_into(mask_rcnn(PLAIN), state)

"""Statistics of merging among the metrics of real runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from torch.testing import assert_close

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import evaluate, train
from ltm_mm.errors import UserError
from ltm_mm.evaluation.merge_quality import achievable_accuracy
from ltm_mm.merging import record_merges
from ltm_mm.models import LTMSwin, LTMViT
from ltm_mm.models.losses.token_labels import grid_counts, merged_labels
from ltm_mm.registry import HOOKS
from tests.conftest import ROOT
from tests.engine.conftest import SHAPES_CONFIG
from tests.engine.test_run import FAST

Options = Callable[..., dict[str, object]]
KEYS = ("kept", "asa", "asa_pooling", "I_AX", "I_AY", "IB")
KEEP = {"model.backbone.keep": (25, 16, 9, 4)}


def check(metrics: dict[str, float]) -> None:
    """What holds whatever the model is."""
    assert {f"ltm/{k}" for k in KEYS} <= set(metrics)
    for key in KEYS:
        each = [metrics[f"ltm/{i}/{key}"] for i in range(4)]
        assert metrics[f"ltm/{key}"] == pytest.approx(sum(each) / 4)
    assert 0 < metrics["ltm/I_AY"] <= metrics["ltm/I_AX"]
    assert 0 < metrics["ltm/3/asa"] <= metrics["ltm/0/asa"] < 1
    assert 0 < metrics["ltm/2/kept"] < metrics["ltm/0/kept"] < 1
    # Weights that were hardly trained still tell like from unlike.
    assert metrics["ltm/0/asa_pooling"] < metrics["ltm/0/asa"]


def test_detector(shapes: Path, tmp_path: Path, options: Options) -> None:
    """In the validation of a training and in a test; boundary IoU and AP by size beside them."""
    file = str(shapes / "annotations" / "instances_val.json")
    changes = {**options(), **FAST, **KEEP, "custom_hooks": [dict(type="ltm_mm.MergeStatistics")]}
    for part in ("val", "test"):
        for key in [k for k in changes if k.startswith(f"{part}_evaluator")]:
            del changes[key]
        changes[f"{part}_evaluator"] = [
            dict(type="CocoMetric", ann_file=file, metric=["bbox", "segm"]),
            dict(type="ltm_mm.BoundaryIoU", ann_file=file, score_thr=0.0),
        ]
    runner = train(SHAPES_CONFIG, str(tmp_path), cfg_options=changes)
    logged = {
        k.removeprefix("val/"): v.current() for k, v in runner.message_hub.log_scalars.items()
    }
    check(logged)
    sizes = {f"coco/{kind}_mAP_{size}" for kind in ("bbox", "segm") for size in "sml"}
    boundaries = {f"boundary/mIoU{size}" for size in ("", "_s", "_m", "_l")}
    assert sizes | boundaries <= set(logged)
    tested = evaluate(SHAPES_CONFIG, f"{tmp_path}/epoch_1.pth", str(tmp_path), cfg_options=changes)
    for key in KEYS:
        assert tested[f"ltm/{key}"] == pytest.approx(logged[f"ltm/{key}"], rel=1e-4)

    assert not runner.model._forward_hooks
    assert not runner.model._forward_pre_hooks


@pytest.mark.slow
def test_segmentor_and_a_plain_model(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
    root = ensure_shapes(tmp_path / "shapes", {"train": 4, "val": 2})
    changes: dict[str, object] = {
        **KEEP,
        "train_cfg.max_iters": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "custom_hooks": [dict(type="ltm_mm.MergeStatistics", tokens_per_image=50)],
        "test_evaluator": [dict(type="IoUMetric"), dict(type="ltm_mm.BoundaryF")],
    }
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.data_root"] = str(root)
        changes[f"{part}_dataloader.num_workers"] = 0
        changes[f"{part}_dataloader.persistent_workers"] = False
    runner = train(config, str(tmp_path), cfg_options=dict(changes))
    check({k[4:]: v.current() for k, v in runner.message_hub.log_scalars.items()})
    checkpoint = f"{tmp_path}/iter_1.pth"
    plain = evaluate(config, checkpoint, str(tmp_path), ltm="none", cfg_options=dict(changes))
    assert {"mIoU", "mBoundaryF"} <= set(plain)
    assert not [k for k in plain if k.startswith("ltm/")]
    changes["model.test_cfg"] = dict(mode="slide", crop_size=(96, 96), stride=(64, 64))
    with pytest.raises(UserError, match="images that are seen whole"):
        evaluate(config, checkpoint, str(tmp_path), cfg_options=dict(changes))


@pytest.mark.parametrize("name", ["tokens_per_image", "centroids", "temperature"])
def test_wrong_options(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        HOOKS.build({"type": "ltm_mm.MergeStatistics", name: 0})


def test_options_reach_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = HOOKS.build({"type": "ltm_mm.MergeStatistics", "centroids": 8, "temperature": 0.5})
    seen: dict[str, object] = {}

    def record(tokens: torch.Tensor, labels: torch.Tensor, num_classes: int, **k: object) -> dict:
        seen.update(k)
        return {}

    monkeypatch.setattr("ltm_mm.engine.statistics_hook.held_out_information", record)
    hook.handles, hook.stages, hook.num_classes = [], [["m"]], 2
    hook.sums = {0: torch.ones(3, 2)}
    hook.tokens = {0: [(torch.zeros(1, 3), torch.zeros(1))]}
    hook._finish({})
    assert seen == {"centroids": 8, "temperature": 0.5}


class Segmentor(nn.Module):
    """Takes what mmseg's models take."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: torch.Tensor, data_samples: list) -> None:
        self.backbone(inputs)


def test_whole_images_have_no_windows_to_pool_in() -> None:
    hook = HOOKS.build({"type": "ltm_mm.MergeStatistics", "centroids": 4})
    model = Segmentor(LTMViT("tiny", keep=((0.8, 0.5),), num_layers=2).eval())
    hook._start(model, {"classes": ("a",)})
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(2, (1, 96, 96))))
    with torch.no_grad():
        model(torch.rand(2, 3, 96, 96), [sample] * 2)
    metrics: dict[str, float] = {}
    hook._finish(metrics)
    names = {"kept", "asa", "I_AX", "I_AY", "IB"}
    assert set(metrics) == {f"ltm/{n}" for n in names} | {f"ltm/0/{n}" for n in names}
    assert metrics["ltm/kept"] == pytest.approx((29 + 18) / 2 / 36)  # rounded up


def test_measures_of_known_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are of all blocks of a stage, tokens of its last one."""
    hook = HOOKS.build({"type": "ltm_mm.MergeStatistics", "tokens_per_image": 4})
    swin = LTMSwin(
        embed_dims=8, depths=(2, 2), num_heads=(1, 1), strides=(4, 2), out_indices=(1,),
        keep=((25, 9), (None, 16)),
    )  # fmt: skip
    model = Segmentor(swin).eval()
    hook._start(model, {"classes": ("a",)})
    labels = torch.zeros(1, 112, 112, dtype=torch.long)
    labels[:, :, 50:] = 1
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    with torch.no_grad(), record_merges(model) as merges:
        model(torch.rand(2, 3, 112, 112), [sample] * 2)
    assert {k: [len(t) for t, _ in v] for k, v in hook.tokens.items()} == {0: [4, 4], 1: [4, 4]}
    assert hook.tokens[0][0][0].shape == (4, 8)
    merge, pixels = merges[1][1], labels.repeat(2, 1, 1)  # of stage 0's last block
    classes = merged_labels(merge, grid_counts(merge, pixels, 2))
    for image, (tokens, sampled_labels) in enumerate(hook.tokens[0]):
        at = (tokens[:, None] == merge.merged[image]).all(-1).int().argmax(1)
        assert_close(tokens, merge.merged[image][at], rtol=0, atol=0)
        assert_close(sampled_labels, classes[image][at])

    asked: list[int] = []
    monkeypatch.setattr(
        "ltm_mm.engine.statistics_hook.held_out_information",
        lambda tokens, labels, classes, **_: asked.append(len(tokens)) or {"IB": 1.0},
    )
    metrics: dict[str, float] = {}
    hook._finish(metrics)
    assert asked == [8, 8]
    assert metrics["ltm/0/kept"] == pytest.approx((25 + 9) / 2 / 49)
    assert metrics["ltm/1/kept"] == pytest.approx(16 / 49)
    assert metrics["ltm/kept"] == pytest.approx((17 + 16) / 2 / 49)
    for stage, of_stage in enumerate((merges[:2], merges[2:])):
        kept = [
            torch.stack(achievable_accuracy(grid_counts(m, pixels, 2), m.groups()))
            for _, m in of_stage
        ]
        part, whole = sum(kept)
        assert metrics[f"ltm/{stage}/asa"] == pytest.approx(float(part / whole))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks

"""Statistics of merging among the metrics of real runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import MergeStatistics, evaluate, train
from ltm_mm.registry import HOOKS
from tests.conftest import ROOT
from tests.engine.conftest import SHAPES_CONFIG
from tests.engine.test_run import FAST

Options = Callable[..., dict[str, object]]
KEYS = ("mask_entropy", "prior_shift", "asa", "asa_prior", "I_AX", "I_AY", "IB")


def check(metrics: dict[str, float], untrained: bool) -> None:
    """What holds whatever the model is."""
    assert {f"ltm/{k}" for k in KEYS} <= set(metrics)
    for key in KEYS:
        each = [metrics[f"ltm/{i}/{key}"] for i in range(4)]
        assert metrics[f"ltm/{key}"] == pytest.approx(sum(each) / 4)
    assert 0 < metrics["ltm/I_AY"] <= metrics["ltm/I_AX"]
    assert 0 < metrics["ltm/3/asa"] <= metrics["ltm/0/asa"] < 1
    assert (metrics["ltm/prior_shift"] == pytest.approx(0, abs=1e-6)) == untrained
    if untrained:
        assert metrics["ltm/asa"] == pytest.approx(metrics["ltm/asa_prior"])


def test_detector(shapes: Path, tmp_path: Path, options: Options) -> None:
    """In the validation of a training and in a test; boundary IoU and AP by size beside them."""
    file = str(shapes / "annotations" / "instances_val.json")
    changes = {**options(), **FAST, "custom_hooks": [dict(type="ltm_mm.MergeStatistics")]}
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
    check(logged, untrained=False)
    sizes = {f"coco/{kind}_mAP_{size}" for kind in ("bbox", "segm") for size in "sml"}
    boundaries = {f"boundary/mIoU{size}" for size in ("", "_s", "_m", "_l")}
    assert sizes | boundaries <= set(logged)
    tested = evaluate(SHAPES_CONFIG, f"{tmp_path}/epoch_1.pth", str(tmp_path), cfg_options=changes)
    for key in KEYS:
        assert tested[f"ltm/{key}"] == pytest.approx(logged[f"ltm/{key}"], rel=1e-4)

    changes["model.backbone.steps"] = 0  # only the prior is left of each mask module
    changes["optim_wrapper.optimizer.lr"] = 0.0
    changes["param_scheduler"] = None
    runner = train(SHAPES_CONFIG, str(tmp_path / "prior"), cfg_options=changes)
    logged = {k[4:]: v.current() for k, v in runner.message_hub.log_scalars.items()}
    check(logged, untrained=True)
    hook = next(h for h in runner.hooks if isinstance(h, MergeStatistics))
    assert not runner.model._forward_hooks
    assert not runner.model._forward_pre_hooks
    assert isinstance(hook, Hook)


def test_segmentor_and_a_plain_model(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
    root = ensure_shapes(tmp_path / "shapes", {"train": 4, "val": 2})
    changes: dict[str, object] = {
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
    check({k[4:]: v.current() for k, v in runner.message_hub.log_scalars.items()}, untrained=False)
    checkpoint = f"{tmp_path}/iter_1.pth"
    plain = evaluate(config, checkpoint, str(tmp_path), ltm="none", cfg_options=dict(changes))
    assert {"mIoU", "mBoundaryF"} <= set(plain)
    assert not [k for k in plain if k.startswith("ltm/")]
    changes["model.test_cfg"] = dict(mode="slide", crop_size=(96, 96), stride=(64, 64))
    with pytest.raises(ValueError, match="images that are seen whole"):
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
    hook.handles, hook.names, hook.num_classes = [], ["m"], 2
    hook.sums = {"m": torch.ones(4, 2)}
    hook.tokens = {"m": [(torch.zeros(1, 3), torch.zeros(1))]}
    hook._finish({})
    assert seen == {"centroids": 8, "temperature": 0.5}

"""The bottleneck loss on real detectors and segmentors: by config, from the command line."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.datasets import SHAPES
from ltm_mm.engine import InformationBottleneck, UserError, evaluate, load_config, train, use_ib
from ltm_mm.engine.capture import catch_merges, choose_stages, merging_stages
from ltm_mm.engine.ib_hook import KEY
from ltm_mm.models import LTMEfficientViT, LTMSwin
from ltm_mm.models.losses.token_labels import token_counts
from ltm_mm.registry import HOOKS, MODELS
from tests.conftest import ROOT
from tests.engine.conftest import SHAPES_CONFIG
from tests.engine.test_run import FAST

Options = Callable[..., dict[str, object]]
CONFIGS = ROOT / "configs"
SEG_CONFIG = CONFIGS / "ltm_swin_upernet_shapes.py"
TINY = {"embed_dims": 8, "depths": (2, 2, 2), "num_heads": (1, 1, 1), "strides": (4, 2, 2)}


def tiny_swin(**changes: object) -> LTMSwin:
    return LTMSwin(**{**TINY, "out_indices": (0, 1, 2), **changes})


def test_stages_and_what_their_slots_stand_for() -> None:
    model = nn.Sequential(tiny_swin(slots=((7, 5), None, (5, 3))))
    assert {k: [n for n, _ in v] for k, v in merging_stages(model).items()} == {
        "0.stages.0.blocks": ["0.stages.0.blocks.1.merge"],
        "0.stages.2.blocks": ["0.stages.2.blocks.0.merge", "0.stages.2.blocks.1.merge"],
    }
    with catch_merges(model, (150, 170)) as caught, torch.no_grad():
        model(torch.rand(2, 3, 150, 170))
    assert not any(m._forward_hooks for m in model.modules())
    # Stage 0: 38 x 43 tokens of 4 pixels; stage 2: 10 x 11 of 16.
    assert [tuple(c.merge.tokens.shape[1:3]) for c in caught] == [(38, 43), (10, 11), (8, 8)]
    assert [tuple(c.merge.slots.shape[1:3]) for c in caught] == [(28, 31), (8, 8), (5, 5)]

    # Two slots of a merge share a token's pixels as its row of U says, and none gets lost.
    pixels = torch.randint(-1, 3, (2, 150, 170))
    everything = torch.stack([(pixels == k).flatten(1).sum(1) for k in (0, 1, 2, -1)], 1)
    first, second, third = caught
    assert_close(second.token_counts(pixels, 3), token_counts(pixels, (10, 11), 16, 3))
    assert_close(third.token_counts(pixels, 3), second.slot_counts(pixels, 3))
    for c in caught:
        assert_close(c.slot_counts(pixels, 3).sum((1, 2)), everything.float())
    row, col, slot = 9, 16, 7  # a token of the window (1, 2) of stage 0; 7 windows per row
    only = torch.full((2, 150, 170), -1)
    only[1, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = 0
    share = first.merge.back[1, 1 * 7 + 2, (row - 7) * 7 + (col - 14), slot]
    found = first.slot_counts(only, 1)[..., 0]
    assert_close(found[1, 1 * 5 + slot // 5, 2 * 5 + slot % 5], 16 * share)
    assert not found[0].any()


def efficientvit() -> nn.Module:
    return LTMEfficientViT(arch="b0", slots="balanced")


def merged_timm() -> nn.Module:
    name = "swin_tiny_patch4_window7_224"
    return ltm_mm.apply(
        timm.create_model(name, embed_dim=24, depths=(2, 2, 2, 2)), slots=(5, 5, 5, 5)
    )


@pytest.mark.parametrize(("build", "strides"), [(efficientvit, [16, 32]), (merged_timm, None)])
def test_other_models(build: Callable, strides: list[int] | None) -> None:
    model = build().eval()
    with catch_merges(model, (224, 224)) as caught:
        model(torch.rand(1, 3, 224, 224))
    by_stage = {}
    for c in caught:
        by_stage.setdefault(c.stage, int(c.token_counts(torch.zeros(1, 224, 224).long(), 1).max()))
    assert list(by_stage.values()) == [s * s for s in strides or [4, 8, 16, 32]]


def test_choice_of_stages() -> None:
    model = tiny_swin(slots="balanced")
    names = [f"stages.{i}.blocks.1.merge" for i in range(3)]
    assert list(choose_stages(model, "all")) == names
    assert list(choose_stages(model, (0, -1))) == [names[0], names[2]]
    with pytest.raises(ValueError, match="positions from 0 to 2"):
        choose_stages(model, (3,))
    with pytest.raises(ValueError, match="merges no tokens"):
        choose_stages(tiny_swin(slots=None), "all")


class Bench:
    """A small segmentor with the hook, and a batch for it."""

    def __init__(
        self, backbone: dict | None = None, config: Path = SEG_CONFIG, **options: object
    ) -> None:
        cfg = load_config(config)
        cfg.model.backbone.update(backbone or {})
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.model = MODELS.build(cfg.model).train()
        options = {"warmup": 0.0, "centroids": 16, **options}
        self.hook = HOOKS.build({"type": "ltm_mm.InformationBottleneck", **options})
        data = SimpleNamespace(dataset=SimpleNamespace(metainfo={"classes": SHAPES}))
        self.runner = SimpleNamespace(model=self.model, iter=0, max_iters=10, train_dataloader=data)
        self.hook.before_train(self.runner)
        self.images = torch.randn(2, 3, 96, 96)

    def samples(self) -> list:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        maps = torch.randint(7, (2, 1, 6, 6), generator=torch.Generator().manual_seed(0))
        maps = maps.repeat_interleave(16, 2).repeat_interleave(16, 3)
        meta = {"img_shape": (96, 96)}
        return [SegDataSample(gt_sem_seg=PixelData(data=m), metainfo=meta) for m in maps]

    def losses(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return self.model(self.images, self.samples(), mode="loss")

    def gradients(self) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        loss, _ = self.model.parse_losses(self.losses())
        loss.backward()
        return {n: p.grad for n, p in self.model.named_parameters()}


@pytest.mark.parametrize("bound", ["paper", "variational"])
def test_adds_one_loss_that_reaches_the_masks(bound: str) -> None:
    bench = Bench(bound=bound)
    plain = Bench(weight=0.0).gradients()
    gradients = bench.gradients()
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    same = {n for n, g in gradients.items() if torch.allclose(g, plain[n], rtol=1e-4, atol=1e-8)}
    heads = {n for n in gradients if n.startswith(("decode_head", "auxiliary_head"))}
    masks = {n for n in gradients if ".merge." in n}
    assert heads <= same, "what comes after the merged tokens knows nothing of the loss"
    assert len(masks) == 4 * 2
    assert not masks & same
    total, logged = bench.model.parse_losses(bench.losses())
    parts = sum(v for k, v in logged.items() if "loss_" in k)
    assert_close(total, parts)
    assert_close(logged["loss_ib"], 0.1 * logged["ib_bound"])


def test_warmup_weight_and_the_models_own_losses() -> None:
    bench = Bench(warmup=0.3, weight=0.5)
    with torch.no_grad():
        warm = bench.losses()
        bench.runner.iter = 3
        after = bench.losses()
    assert warm["loss_ib"] == 0
    assert warm["ib_bound"] != 0
    assert_close(after["loss_ib"], 0.5 * after["ib_bound"])
    bench.hook.after_train(bench.runner)
    own = bench.losses()
    assert set(after) - set(own) == {"loss_ib", "ib_bound"}
    assert "loss" not in vars(bench.model)


def test_stages_and_options_reach_the_losses() -> None:
    bench = Bench(stages=(1,), temperature=0.5)
    bench.losses()
    assert list(bench.hook.losses) == ["backbone.stages.1.blocks.1.merge"]
    assert bench.hook.losses["backbone.stages.1.blocks.1.merge"].temperature == 0.5


def test_frozen_stages_have_no_loss() -> None:
    bench = Bench(backbone={"frozen_stages": 2})
    bench.gradients()
    assert [n.split(".")[2] for n in bench.hook.losses] == ["2", "3"]
    with pytest.raises(UserError, match="all its stages are frozen"):
        Bench(backbone={"frozen_stages": 4})
    with pytest.raises(UserError, match="merges no tokens: use an LTM backbone with slots"):
        Bench(backbone={"slots": None})


@pytest.mark.parametrize("family", ["swin", "efficientvit"])
def test_activation_checkpointing_changes_nothing(family: str) -> None:
    config = CONFIGS / f"ltm_{family}_upernet_shapes.py"
    plain, saving = (Bench({"with_cp": with_cp}, config) for with_cp in (False, True))
    assert_close(saving.gradients(), plain.gradients())
    steps = {k: v.steps for k, v in saving.hook.losses.items()}
    assert steps == dict.fromkeys(plain.hook.losses, 1)


def test_mixed_precision() -> None:
    bench = Bench(bound="variational")
    with torch.autocast("cpu", torch.bfloat16):
        gradients = bench.gradients()
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_wrong_options() -> None:
    for wrong, says in (
        ({"warmup": 2.0}, "warmup is a share"),
        ({"weight": -1.0}, "weight must be"),
        ({"bound": "tight"}, "bound must be one of paper, variational"),
        ({"stages": "last"}, "stages must be"),
        ({"centroids": 0}, "centroids must be"),
    ):
        with pytest.raises(ValueError, match=says):
            InformationBottleneck(**wrong)


def test_use_ib() -> None:
    cfg = Config({"custom_hooks": [{"type": "NumClassCheckHook"}]})
    use_ib(cfg, "paper")
    use_ib(cfg, "variational")  # not a second one
    assert [h["type"] for h in cfg.custom_hooks] == [
        "NumClassCheckHook",
        "ltm_mm.InformationBottleneck",
    ]
    assert cfg.custom_hooks[1]["bound"] == "variational"
    use_ib(cfg, "none")
    assert [h["type"] for h in cfg.custom_hooks] == ["NumClassCheckHook"]
    with pytest.raises(UserError, match="--ib tight: give none, paper or variational"):
        use_ib(cfg, "tight")


def test_weights_of_another_run_bring_no_estimates() -> None:
    """Those are taken on only where training goes on."""
    first = Bench()
    first.losses()
    checkpoint: dict = {}
    first.hook.before_save_checkpoint(first.runner, checkpoint)
    for step in (0, 1):
        bench = Bench()
        bench.hook.after_load_checkpoint(bench.runner, checkpoint)
        bench.runner.iter = step
        bench.hook.before_train(bench.runner)
        assert bool(bench.hook.saved) == bool(step)


def hook_of(runner: object) -> InformationBottleneck:
    (hook,) = (h for h in runner.hooks if isinstance(h, InformationBottleneck))
    return hook


def test_train_resume_evaluate(
    shapes: Path, tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside EMA and gradient accumulation; saved, resumed to the bit, gone when testing."""
    work, changes = str(tmp_path / "work"), {**options(), **FAST}
    changes["optim_wrapper.accumulative_counts"] = 2
    changes["custom_hooks"] = [dict(type="EMAHook", momentum=0.1)]
    changes["val_cfg"] = changes["val_dataloader"] = changes["val_evaluator"] = None
    runner = train(SHAPES_CONFIG, work, ib="paper", cfg_options=dict(changes))
    assert any(isinstance(h, EMAHook) for h in runner.hooks)
    log = next(tmp_path.glob("work/*/*.log")).read_text()
    values = [float(v) for v in re.findall(r"Epoch\(train\).* loss_ib: ([\d.-]+)", log)]
    assert values[0] == 0
    assert values[1] != 0, "warm-up ends after 0.3 of two steps"

    saved = torch.load(f"{work}/epoch_1.pth", weights_only=False)
    states = {n: loss.state_dict() for n, loss in hook_of(runner).losses.items()}
    assert len(states) == 4
    assert_close(saved[KEY], states, rtol=0, atol=0)
    assert not [k for k in saved["state_dict"] if "centroids" in k or "ib" in k.split(".")]

    started: dict[str, dict] = {}
    make = InformationBottleneck._loss_of

    def first_seen(self: InformationBottleneck, name: str, *args: object) -> nn.Module:
        loss = make(self, name, *args)
        started.setdefault(name, copy.deepcopy(loss.state_dict()))
        return loss

    monkeypatch.setattr(InformationBottleneck, "_loss_of", first_seen)
    changes["train_cfg.max_epochs"] = 2
    runner = train(SHAPES_CONFIG, work, resume="auto", ib="paper", cfg_options=dict(changes))
    assert_close(started, states, rtol=0, atol=0)
    assert {loss.steps for loss in hook_of(runner).losses.values()} == {4}
    del changes["val_cfg"], changes["val_dataloader"], changes["val_evaluator"]
    metrics = evaluate(SHAPES_CONFIG, f"{work}/epoch_2.pth", work, cfg_options=changes)
    assert {"coco/bbox_mAP_s", "coco/bbox_mAP_m", "coco/bbox_mAP_l"} <= set(metrics)

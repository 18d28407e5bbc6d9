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
from ltm_mm.engine import InformationBottleneck, evaluate, load_config, train, use_ib
from ltm_mm.engine.ib_hook import KEY, place_tokens
from ltm_mm.engine.merging_blocks import block_of, choose_stages, mask_modules, merging_stages
from ltm_mm.errors import UserError
from ltm_mm.merging import ChainMerge, Groups, Merge, record_merges
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from ltm_mm.models.losses.token_labels import (
    grid_counts,
    merged_labels,
    token_counts,
    token_stride,
)
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


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: tiny_swin(keep=(25, None, (16, 9))),
    "vit": lambda: LTMViT("tiny", keep=([150, 150, 60],), num_layers=3, out_indices=(2,)),
    "mobilevit": lambda: LTMMobileViT("xxs", keep=0.5),
    "efficientvit": lambda: LTMEfficientViT("b0", keep="fast"),
}


def merges_of(family: str, size: tuple[int, int]) -> list[Merge]:
    """The merges of two images; B is a multiple of two."""
    model = FAMILIES[family]().eval()
    with torch.no_grad(), record_merges(model) as merges:
        model(torch.rand(2, 3, *size))
    assert [name for name, _ in merges] == mask_modules(model)
    return [merge for _, merge in merges]


def test_stages_and_blocks() -> None:
    assert merging_stages(nn.Sequential(tiny_swin(keep=((None, 25), None, (25, 9))))) == {
        "0.stages.0.blocks": ["0.stages.0.blocks.1.merge"],
        "0.stages.2.blocks": ["0.stages.2.blocks.0.merge", "0.stages.2.blocks.1.merge"],
    }
    assert merging_stages(FAMILIES["vit"]()) == {"blocks": ["blocks.0.merge", "blocks.2.merge"]}
    mobilevit = merging_stages(FAMILIES["mobilevit"]())
    assert list(mobilevit) == [f"stages.{i}.1.transformer" for i in (2, 3, 4)]
    efficientvit = mask_modules(FAMILIES["efficientvit"]())
    assert {block_of(name) for name in efficientvit} >= {"stages.2.blocks.1", "stages.3.blocks.1"}
    timm_model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24)
    names = mask_modules(ltm_mm.apply(timm_model, keep=(None, 25, None, None)))
    assert [block_of(name) for name in names] == ["layers.1.blocks.0", "layers.1.blocks.1"]


def test_choice_of_stages() -> None:
    model = tiny_swin(keep=25)
    names = [[f"stages.{i}.blocks.{k}.merge" for k in (0, 1)] for i in range(3)]
    assert choose_stages(model, "all") == [*names[0], *names[1], *names[2]]
    assert choose_stages(model, (0, -1)) == [*names[0], *names[2]]
    for wrong in (3, -4):
        with pytest.raises(ValueError, match="positions from 0 to 2"):
            choose_stages(model, (wrong,))
    with pytest.raises(ValueError, match="merges no tokens: use an LTM backbone with `keep`"):
        choose_stages(tiny_swin(keep=None), "all")


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_by_counting(family: str) -> None:
    """Two groups share a token's pixels as its row of U says, and none gets lost."""
    size = (150, 170)
    pixels = torch.randint(-1, 3, (2, *size))
    everything = torch.stack([(pixels == k).flatten(1).sum(1) for k in (0, 1, 2, -1)], 1)
    merges = merges_of(family, size)
    for merge in merges:
        counts = grid_counts(merge, pixels, 3)
        grids = len(merge.merged) // 2
        stride = token_stride(size, merge.grid)
        own = token_counts(pixels, merge.grid, stride, 3)
        assert_close(counts, own.repeat_interleave(grids, 0))
        every = everything.repeat_interleave(grids, 0).float()
        assert_close(counts.sum((1, 2)), every)
        assert_close(merge.share(counts).sum(1), every)
        labels = merged_labels(merge, counts)
        assert labels.shape == merge.merged.shape[:2]
        if family != "efficientvit":
            slow = torch.full_like(labels, -1)  # of a group that has padding alone
            for b, groups in enumerate(merge.groups()):
                for m in groups.unique().tolist():
                    best = counts[b][groups == m].sum(0).argmax()
                    slow[b, m] = best if best < 3 else -1
            assert_close(labels, slow)


def test_strides() -> None:
    """A token of one class covers stride x stride pixels."""
    strides = {}
    for family in FAMILIES:
        pixels = torch.zeros(2, 256, 256, dtype=torch.long)
        found = [int(grid_counts(m, pixels, 1).max()) for m in merges_of(family, (256, 256))]
        strides[family] = sorted({round(area**0.5) for area in found})
    assert strides == {
        "swin": [4, 16],
        "vit": [16],
        "mobilevit": [16, 32, 64],
        "efficientvit": [16, 32],
    }


@pytest.mark.parametrize("family", ["swin", "vit", "mobilevit"])
def test_place_tokens_are_members_of_their_groups(family: str) -> None:
    for merge in merges_of(family, (150, 170)):
        token_ids = place_tokens(merge)
        assert token_ids.shape == merge.merged.shape
        tokens, groups = merge.tokens.flatten(1, -2), merge.groups()
        if merge.tokens.dim() == 3:  # merged tokens of the merge before
            groups = merge.mask.group_index
        for b, m in ((b, m) for b, own in enumerate(groups) for m in own.unique().tolist()):
            members = tokens[b][groups[b].flatten() == m]
            assert (members == token_ids[b, m]).all(-1).any()


def test_place_tokens_of_grids() -> None:
    """They lie where the merged tokens do."""
    torch.manual_seed(0)
    merge = merges_of("efficientvit", (256, 256))[0]  # 16 x 16 tokens
    side = merge.merged_grid.shape[1]
    at = ((torch.arange(side) + 0.5) * 16 / side).long()
    assert_close(place_tokens(merge), merge.tokens[:, at][:, :, at].flatten(1, 2))


@pytest.mark.parametrize("grids", [1, 4])
def test_labels_of_several_grids(grids: int) -> None:
    """MobileViT merges four grids of an image: all have this image's ground truth."""
    images = torch.arange(3)
    tokens = images.repeat_interleave(grids).float().view(-1, 1, 1).expand(-1, 16, 1)
    group_index = (torch.arange(16) // 4).expand(3 * grids, -1)
    mask = Groups(
        group_index, torch.arange(0, 16, 4).expand(3 * grids, -1), torch.full((1, 4), 4.0)
    )
    merge = ChainMerge(tokens, mask.merge(tokens), mask, (4, 4))
    pixels = images.view(3, 1, 1).expand(3, 32, 32)
    labels = merged_labels(merge, grid_counts(merge, pixels, 4))
    assert_close(labels, merge.merged[..., 0].long())
    assert_close(place_tokens(merge), merge.merged)


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
def test_adds_one_loss_that_reaches_what_merges(bound: str) -> None:
    backbone = {"keep": (25, 25, 25, 9)}
    bench = Bench(backbone, bound=bound)
    plain = Bench(backbone, weight=0.0).gradients()
    gradients = bench.gradients()
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    same = {n for n, g in gradients.items() if torch.allclose(g, plain[n], rtol=1e-4, atol=1e-8)}
    heads = {n for n in gradients if n.startswith(("decode_head", "auxiliary_head"))}
    last = {n for n in gradients if n.startswith("backbone.stages.3.blocks.1")}
    assert heads | last <= same, "what comes after the merged tokens knows nothing of the loss"
    before = {n for n in gradients if n.startswith(("backbone.patch_embed", "backbone.stages.0"))}
    assert not before & same
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
    bench = Bench({"keep": 25}, stages=(1,), temperature=0.5)
    bench.losses()
    assert list(bench.hook.losses) == [f"backbone.stages.1.blocks.{k}.merge" for k in (0, 1)]
    assert {loss.temperature for loss in bench.hook.losses.values()} == {0.5}


def test_what_the_losses_are_given() -> None:
    """Merged tokens, their classes, and a token of the input for each."""
    bench = Bench({"keep": 25})
    given = {}

    def note(name: str, *_: object) -> Callable:
        return lambda *args: given.update({name: args}) or args[0].sum()

    bench.hook._loss_of = note
    with record_merges(bench.model) as merges:
        bench.losses()
    pixels = torch.cat([sample.gt_sem_seg.data for sample in bench.samples()])
    assert list(given) == [name for name, _ in merges]
    for name, merge in merges:
        labels = merged_labels(merge, grid_counts(merge, pixels, 8))
        expected = (merge.merged, labels, place_tokens(merge))
        assert_close(given[name], tuple(part.flatten(0, 1) for part in expected))
        assert len(labels.unique()) > 2


def test_frozen_stages_have_no_loss() -> None:
    bench = Bench(backbone={"keep": 25, "frozen_stages": 2})
    bench.gradients()
    assert {n.split(".")[2] for n in bench.hook.losses} == {"2", "3"}
    with pytest.raises(UserError, match="carries a gradient: they are all frozen"):
        Bench(backbone={"keep": 25, "frozen_stages": 4}).losses()
    with pytest.raises(UserError, match="merges no tokens: use an LTM backbone with `keep`"):
        Bench(backbone={"keep": None})


@pytest.mark.parametrize(("family", "keep"), [("swin", 25), ("efficientvit", (None, None, 36, 25))])
def test_activation_checkpointing_changes_nothing(family: str, keep: object) -> None:
    config = CONFIGS / f"ltm_{family}_upernet_shapes.py"
    plain, saving = (Bench({"keep": keep, "with_cp": cp}, config) for cp in (False, True))
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
    assert list(states) == mask_modules(runner.model)
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

"""Merging put on and taken off models that are already built."""

import copy

import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.models import LTMSwin, LTMViT
from ltm_mm.models.apply import apply, remove

from .contract import randomise

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))

TINY_VIT = dict(embed_dim=24, num_heads=2, depth=4, reg_tokens=2)


def swin_of(scope: str) -> nn.Module:
    if scope == "mmdet":
        from mmdet.models.backbones import SwinTransformer
    else:
        from mmseg.models.backbones import SwinTransformer
    return SwinTransformer(**TINY)


def timm_swin() -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=224,
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        num_classes=5,
        always_partition=True,
    )


def segmentor() -> nn.Module:
    init_default_scope("mmseg")
    from mmseg.registry import MODELS

    return MODELS.build(
        ConfigDict(
            type="EncoderDecoder",
            backbone=dict(type="SwinTransformer", **TINY),
            decode_head=dict(
                type="FCNHead",
                in_channels=128,
                channels=8,
                num_classes=4,
                in_index=3,
                num_convs=1,
                norm_cfg=dict(type="BN"),
            ),
        )
    )


MODELS = {
    "mmdet swin": lambda: swin_of("mmdet"),
    "mmseg swin": lambda: swin_of("mmseg"),
    "mmseg segmentor": segmentor,
    "timm swin": timm_swin,
    "timm efficientvit": lambda: timm.create_model("efficientvit_b0", num_classes=5),
    "timm efficientvit features": lambda: timm.create_model("efficientvit_b0", features_only=True),
    "timm mobilevit": lambda: timm.create_model("mobilevit_xxs", num_classes=5),
    "timm mobilevit features": lambda: timm.create_model("mobilevit_xxs", features_only=True),
    "timm vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, **TINY_VIT),
    "timm vit features": lambda: timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(0, 2), **TINY_VIT
    ),
}


def outputs(model: nn.Module) -> list[torch.Tensor]:
    model.train(False)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(x)
    return list(out) if isinstance(out, list | tuple) else [out]


@pytest.mark.parametrize("name", MODELS)
def test_removed_is_bit_identical_to_before(name):
    model = randomise(MODELS[name]())
    before, state = outputs(model), copy.deepcopy(model.state_dict())
    parameters = {id(p) for p in model.parameters()}

    assert apply(model, slots="fast") is model
    merged = outputs(model)
    assert [m.shape for m in merged] == [b.shape for b in before]
    assert (merged[-1] - before[-1]).abs().max() > 1e-5
    assert parameters <= {id(p) for p in model.parameters()}
    assert any(".merge." in key for key in model.state_dict())

    assert remove(model) is model
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for a, b in zip(outputs(model), before, strict=True):
        assert torch.equal(a, b)


def test_applied_equals_the_backbone_of_the_same_plan():
    reference = randomise(swin_of("mmdet"))
    plan = ("fast", (None, 5, (7, 6, 5, 4), 3))
    for slots in plan:
        mine = randomise(LTMSwin(**TINY, slots=slots))
        mine.load_state_dict(reference.state_dict(), strict=False)
        model = apply(copy.deepcopy(reference), slots=slots)
        assert set(model.state_dict()) == set(mine.state_dict())
        model.load_state_dict(mine.state_dict())
        for a, b in zip(outputs(model), outputs(mine), strict=True):
            # Sharp masks amplify the rounding of single precision.
            assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_timm_swin_with_silent_merges_is_as_before():
    """Blocks that share timm's layers compute what timm's compute."""
    model = randomise(timm_swin())
    for layer in model.layers:
        for block in layer.blocks:
            nn.init.zeros_(block.mlp.fc2.weight)
            nn.init.zeros_(block.mlp.fc2.bias)
    before = outputs(model)
    applied = outputs(apply(model, slots="balanced"))  # merges after the last attention
    for a, b in zip(applied, before, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slots", ["fast", ((7, 6, 6, 3),)])
def test_applied_to_timms_vit_equals_the_backbone_of_the_same_plan(slots):
    options = dict(dynamic_img_size=True, dynamic_img_pad=True, **TINY_VIT | dict(reg_tokens=0))
    model = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)).eval()
    small = dict(embed_dims=24, num_heads=2, num_layers=4, out_indices=(1, 3))
    mine = randomise(LTMViT("tiny", slots, **small)).eval()
    apply(model, slots=slots)
    model.load_state_dict(mine.state_dict(), strict=False)
    x = torch.randn(2, 3, 150, 233, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        last, maps = model.forward_intermediates(x, (1, 3))
        for a, b in zip(maps, mine(x), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert_close(last, model.forward_features(x), rtol=1e-5, atol=1e-5)
        (with_prefix,) = model.forward_intermediates(
            x, [1], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        assert_close(with_prefix[0], maps[0].flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
        assert with_prefix[1].shape == (2, 1, 24)
        (normed,) = model.forward_intermediates(x, [3], norm=True, intermediates_only=True)
    assert_close(normed.flatten(2).transpose(1, 2), last[:, 1:], rtol=1e-5, atol=1e-5)


def test_timms_checkpointing_changes_nothing_in_a_merged_vit():
    model = apply(randomise(timm.create_model("vit_tiny_patch16_224", **TINY_VIT)), slots="fast")
    x, grads = torch.randn(1, 3, 224, 224), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_window_size_matters_where_it_may_be_chosen():
    for name in ("timm efficientvit", "timm mobilevit", "timm vit"):
        seen = []
        for window in (None, 4):
            model = randomise(MODELS[name]())
            apply(model, slots="fast", window_size=window)
            seen.append({k: v.shape for k, v in model.state_dict().items() if "prior" in k})
        assert seen[0] != seen[1]


def test_training_goes_on_through_apply_and_remove():
    model = swin_of("mmdet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.stages[2].blocks[1].ffn.layers[1].weight
    before = weight.detach().clone()
    apply(model, slots="balanced").train()
    sum(m.mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    remove(model)
    assert model.stages[2].blocks[1].ffn.layers[1].weight is weight
    assert (weight - before).abs().max() > 0
    assert model.stages[2].training


def test_a_copy_is_independent():
    model = apply(randomise(swin_of("mmdet")), slots="fast")
    before, twin = outputs(model), copy.deepcopy(model)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    remove(twin)
    for a, b in zip(outputs(model), before, strict=True):
        assert torch.equal(a, b)
    assert all((p == 0).all() for p in twin.parameters())


def test_unmerged_stages_are_left_alone():
    model = swin_of("mmdet")
    stages = list(model.stages)
    apply(model, slots=(None, None, 5, None))
    assert [model.stages[i] is stages[i] for i in range(4)] == [True, True, False, True]


@pytest.mark.parametrize(
    ("model", "slots", "message"),
    [
        (lambda: nn.Linear(2, 2), "fast", "Linear has no stages to merge in: use mmdet's"),
        (lambda: "swin_tiny", "fast", "model must be a built model .*, got 'swin_tiny'"),
        # MSRA's EfficientViT, whose stages have the same name.
        (lambda: timm.create_model("efficientvit_m0"), "fast", "EfficientVitMsra has no stages"),
        (lambda: LTMSwin(**TINY), "fast", "merges tokens already"),
        (lambda: apply(swin_of("mmdet")), "fast", "merges tokens already"),
        (lambda: swin_of("mmdet"), "quick", "unknown slots preset 'quick'"),
        (lambda: apply(MODELS["timm vit"]()), "fast", "merges tokens already"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", patch_drop_rate=0.5, **TINY_VIT),
            "fast",
            "patch_drop_rate has no grid to merge on",
        ),
        (
            lambda: timm.create_model("vit_base_patch16_rpn_224", depth=1),
            "fast",
            "ResPostBlock cannot merge tokens",
        ),
        (lambda: swin_of("mmdet"), (5,), "one entry for each of the 4 stages"),
        (
            lambda: timm.models.swin_transformer.SwinTransformer(
                img_size=64, embed_dim=16, num_heads=(1, 1, 1, 1)
            ),
            "fast",
            "always_partition=True",
        ),
    ],
)
def test_what_cannot_be_merged_gets_one_clear_line(model, slots, message):
    with pytest.raises(ValueError, match=message) as error:
        ltm_mm.apply(model(), slots=slots)
    assert "\n" not in str(error.value)

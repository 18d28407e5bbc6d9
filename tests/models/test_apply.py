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
from ltm_mm.models import LTMSwin
from ltm_mm.models.apply import apply, remove

from .contract import randomise

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))


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
            assert_close(a, b, rtol=1e-5, atol=1e-5)


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

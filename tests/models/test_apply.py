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
from ltm_mm.adapters import apply, remove
from ltm_mm.checkpoints.timm import convert_swin
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

from .contract import settled

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))

TINY_VIT = dict(embed_dim=24, num_heads=2, depth=4, reg_tokens=2)


def swin_of(scope: str, **options: object) -> nn.Module:
    if scope == "mmdet":
        from mmdet.models.backbones import SwinTransformer
    else:
        from mmseg.models.backbones import SwinTransformer
    return SwinTransformer(**TINY | options)


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


LEARNED = {"timm efficientvit", "timm efficientvit features"}  # masks have parameters


@pytest.mark.parametrize("name", MODELS)
def test_removed_is_bit_identical_to_before(name):
    model = settled(MODELS[name]())
    before, state = outputs(model), copy.deepcopy(model.state_dict())
    parameters = {id(p) for p in model.parameters()}
    modules, types = {id(m) for m in model.modules()}, list(map(type, model.modules()))

    assert apply(model, keep=0.4) is model
    merged = outputs(model)
    assert [m.shape for m in merged] == [b.shape for b in before]
    assert (merged[-1] - before[-1]).abs().max() > 1e-5
    new = [key for key in model.state_dict() if key not in state]
    if name in LEARNED:
        assert parameters < {id(p) for p in model.parameters()}
        assert all(".merge." in key for key in new)
    else:
        assert parameters == {id(p) for p in model.parameters()}
    if name not in LEARNED:
        assert list(model.state_dict()) == list(state)
    assert modules <= {id(m) for m in model.modules()}

    assert remove(model) is model
    assert list(model.state_dict()) == list(state)
    assert list(map(type, model.modules())) == types
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for a, b in zip(outputs(model), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize("keep", ["fast", (None, 25, (None, 36, 25, 9), 1)])
def test_applied_equals_the_backbone_of_the_same_plan(keep, scope):
    reference = settled(swin_of(scope))
    mine = settled(LTMSwin(**TINY, keep=keep))
    mine.load_state_dict(reference.state_dict(), strict=False)
    mine.train(False)
    model = apply(copy.deepcopy(reference), keep=keep)
    model.train(False)
    assert set(model.state_dict()) == set(mine.state_dict())
    assert set(model.state_dict()) == set(reference.state_dict())
    model.load_state_dict(mine.state_dict())
    for size in ((224, 224), (75, 117)):
        x = torch.randn(1, 3, *size).double()
        with torch.no_grad():
            for a, b in zip(model.double()(x), mine.double()(x), strict=True):
                assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert list(remove(model).state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        dict(qk_scale=0.3, qkv_bias=False, mlp_ratio=2),
        dict(window_size=5, act_cfg=dict(type="ReLU")),
        dict(use_abs_pos_embed=True, pretrain_img_size=224),
    ],
)
def test_a_models_own_options_stay(options):
    model = settled(swin_of("mmdet", **options))
    mine = LTMSwin(**TINY | options, keep=0.4)
    mine.load_state_dict(model.state_dict())
    apply(model, keep=0.4)
    for a, b in zip(outputs(model), outputs(mine), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0.4, (None, 25, 9, (25, 4))])
def test_applied_to_timms_swin_equals_the_backbone_of_the_same_plan(keep):
    model = settled(timm_swin())
    mine = LTMSwin(**TINY | dict(depths=(2, 2, 2, 2)), keep=keep).eval()
    state = convert_swin(model.state_dict())
    left = mine.load_state_dict(state, strict=False)
    assert all(k.startswith("norm") or k.endswith("_index") for k in left.missing_keys)
    apply(model, keep=keep).eval()
    maps, x = [], torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mine.norm0 = mine.norm1 = mine.norm2 = mine.norm3 = nn.Identity()
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _x, y: maps.append(y.permute(0, 3, 1, 2)))
    with torch.no_grad():
        model(x)
        for a, b in zip(maps, mine(x), strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_blocks_that_share_timms_layers_compute_what_timms_compute():
    """With the merging put aside, what is left is timm's."""
    model = settled(timm_swin())
    before = outputs(model)
    apply(model, keep=(None, None, (48, None), None))
    merged = outputs(model)
    model.layers[2].blocks[0].merge = None
    for a, b, c in zip(outputs(model), before, merged, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert (c - b).abs().max() > 1e-5


@pytest.mark.parametrize("keep", ["fast", ((None, 150, 150, 40),)])
def test_applied_to_timms_vit_equals_the_backbone_of_the_same_plan(keep):
    options = dict(dynamic_img_size=True, dynamic_img_pad=True, **TINY_VIT | dict(reg_tokens=0))
    model = settled(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)).eval()
    small = dict(embed_dims=24, num_heads=2, num_layers=4, out_indices=(1, 3))
    mine = settled(LTMViT("tiny", keep, **small)).eval()
    apply(model, keep=keep)
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


def test_timms_checkpointing_changes_nothing_in_a_merged_vit_but_memory():
    model = apply(settled(timm.create_model("vit_tiny_patch16_224", **TINY_VIT)), keep=0.4)
    x, grads, kept = torch.randn(1, 3, 224, 224), [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            loss = model(x).square().mean()
        loss.backward()
        kept.append(sum(sizes))
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert_close(*grads, rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0] * 0.7


def test_applied_to_timms_mobilevit_equals_the_backbone_of_the_same_plan():
    model = settled(timm.create_model("mobilevit_xxs", num_classes=0)).eval()
    plan = (None, None, 0.7, (None, 9, 9, 4), 16)
    mine = LTMMobileViT("xxs", plan, out_indices=(4,)).eval()
    mine.load_state_dict(model.state_dict())
    apply(model, keep=plan)
    x = torch.randn(1, 3, 96, 150)
    with torch.no_grad():
        assert_close(model.forward_features(x), mine(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window_size", [None, 4])
def test_applied_to_timms_efficientvit_equals_the_backbone_of_the_same_plan(window_size):
    model = settled(timm.create_model("efficientvit_b0", num_classes=0)).eval()
    options = {} if window_size is None else dict(window_size=window_size)
    mine = settled(LTMEfficientViT("b0", 0.3, out_indices=(3,), **options)).eval()
    apply(model, keep=0.3, window_size=window_size)
    left = model.load_state_dict(mine.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith("head.") for key in left.missing_keys)
    x = torch.randn(1, 3, 160, 224)
    with torch.no_grad():
        assert_close(model.forward_features(x), mine(x)[0], rtol=1e-4, atol=1e-4)


def test_training_goes_on_through_apply_and_remove():
    model = swin_of("mmdet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.stages[2].blocks[1].ffn.layers[1].weight
    before = weight.detach().clone()
    apply(model, keep=0.4).train()
    sum(m.mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    remove(model)
    assert model.stages[2].blocks[1].ffn.layers[1].weight is weight
    assert (weight - before).abs().max() > 0
    assert model.stages[2].training


def test_a_copy_is_independent():
    model = apply(settled(swin_of("mmdet")), keep=0.4)
    before, twin = outputs(model), copy.deepcopy(model)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    remove(twin)
    for a, b in zip(outputs(model), before, strict=True):
        assert torch.equal(a, b)
    assert all((p == 0).all() for p in twin.parameters())


def test_unmerged_stages_are_left_alone():
    model = swin_of("mmdet")
    before = [type(stage.blocks[0]) for stage in model.stages]
    apply(model, keep=(None, None, 25, None))
    after = [type(stage.blocks[0]) for stage in model.stages]
    assert [a is b for a, b in zip(after, before, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, "Linear has no stages to merge in: use a Swin of mmdet"),
        (lambda: "swin_tiny", {}, "model must be a built model .*, got 'swin_tiny'"),
        # MSRA's EfficientViT, whose stages have the same name.
        (lambda: timm.create_model("efficientvit_m0"), {}, "EfficientVitMsra has no stages"),
        (lambda: LTMSwin(**TINY), {}, "merges tokens already"),
        (lambda: apply(swin_of("mmdet"), keep=9), {}, "merges tokens already"),
        (lambda: apply(MODELS["timm vit"](), keep=9), {}, "merges tokens already"),
        (lambda: swin_of("mmdet"), dict(keep="quick"), "unknown preset keep='quick'"),
        (lambda: swin_of("mmdet"), dict(keep=(5,)), "one entry for each of the 4 stages"),
        (lambda: swin_of("mmdet"), dict(keep=50), "50 is neither a number .* from 1 to 49"),
        (
            lambda: swin_of("mmdet"),
            dict(window_size=7),
            "window_size is for an EfficientViT; this is a swin",
        ),
        (MODELS["timm vit"], dict(window_size=7), "an EfficientViT; this is a vit"),
        (MODELS["timm mobilevit"], dict(window_size=8), "an EfficientViT; this is a mobilevit"),
        (MODELS["timm efficientvit"], dict(keep=30), "30 is no square number; near are 16, 25"),
        (
            MODELS["timm efficientvit"],
            dict(keep=9, window_size=0),
            "window_size must be an int >= 1, got 0",
        ),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", patch_drop_rate=0.5, **TINY_VIT),
            {},
            "patch_drop_rate has no grid to unmerge to",
        ),
        (
            lambda: timm.create_model("vit_base_patch16_rpn_224", depth=1),
            {},
            "ResPostBlock cannot merge tokens",
        ),
        (
            lambda: timm.models.swin_transformer.SwinTransformer(
                img_size=64, embed_dim=16, num_heads=(1, 1, 1, 1)
            ),
            dict(keep=0.5),
            "always_partition=True",
        ),
    ],
)
def test_what_cannot_be_merged_gets_one_clear_line(model, options, message):
    model = model()
    before = [type(m) for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(ValueError, match=message) as error:
        ltm_mm.apply(model, **options)
    assert "\n" not in str(error.value)
    assert before == ([type(m) for m in model.modules()] if before else [])

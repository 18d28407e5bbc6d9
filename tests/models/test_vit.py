"""LTM-ViT against timm's VisionTransformer, and its own options."""

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.testing import assert_close

from ltm_mm.layers import TokenMerger
from ltm_mm.models import LTMViT
from ltm_mm.models.backbones.global_blocks import GlobalBlock

from .contract import BackboneContract, randomise

TINY = dict(arch="tiny", embed_dims=24, num_layers=4, num_heads=2, img_size=96)


class FeaturesOfWhole(VisionTransformer):
    """timm's ViT as a backbone: its own parameter names, the maps after its blocks."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.forward_intermediates(x, intermediates_only=True)


class TestViTContract(BackboneContract):
    planned = 1
    one_plan_per_map = False
    plans = ["light", "balanced", "fast", ((7, 5, 3, 3),)]

    def build(self, **kwargs):
        return LTMViT(**{**TINY, "out_indices": (0, 1, 2, 3), **kwargs})

    def reference(self):
        return FeaturesOfWhole(
            img_size=96,
            embed_dim=24,
            depth=4,
            num_heads=2,
            num_classes=0,
            final_norm=False,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )

    def branch_ends(self, model):
        return [end for block in model.blocks for end in (block.attn.proj, block.mlp.fc2)]

    def is_stem(self, name):
        return name.startswith(("cls_token", "pos_embed", "patch_embed."))

    def in_stage(self, name, stage):
        return name.startswith(f"blocks.{stage}.")


@pytest.mark.parametrize("size", [(224, 224), (75, 117)])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("tiny", {}),
        # registers, scaled branches, patches of 14
        ("vit_small_patch14_reg4_dinov2", dict(img_size=224, num_layers=3)),
        # no class token; positions for the patches alone
        ("vit_base_patch16_siglip_gap_224", dict(num_layers=2)),
        # the norm comes before the blocks
        ("vit_base_patch16_clip_224", dict(num_layers=2)),
    ],
)
def test_equals_timms_intermediates(arch, options, size):
    depth = options.get("num_layers", 12)
    take = (0, depth - 1)
    name = f"vit_{arch}_patch16_224" if arch == "tiny" else arch
    same = {k: v for k, v in options.items() if k == "img_size"}
    reference = timm.create_model(
        name, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True, depth=depth, **same
    )
    randomise(reference).eval()
    model = LTMViT(arch, slots=None, out_indices=take, final_norm=True, **options).eval()
    left = model.load_state_dict(reference.state_dict(), strict=False)
    assert not left.missing_keys
    assert all("attn_pool" in key for key in left.unexpected_keys)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = reference.forward_intermediates(x, take, norm=True, intermediates_only=True)
        found = model(x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 160), (75, 117), (33, 34)])
def test_simple_pyramid_has_the_declared_shapes(size):
    model = LTMViT(**TINY, simple_pyramid=True).eval()
    assert model.out_channels == (6, 12, 24, 24)
    assert model.strides == (4, 8, 16, 32)
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size))
    for m, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
        assert m.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_simple_pyramid_is_made_from_the_last_map():
    pyramid = randomise(LTMViT(**TINY, simple_pyramid=True)).eval()
    plain = LTMViT(**TINY, out_indices=(3,)).eval()
    left = plain.load_state_dict(pyramid.state_dict(), strict=False)
    assert not left.missing_keys
    assert all(key.startswith("pyramid.") for key in left.unexpected_keys)
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        maps, (last,) = pyramid(x), plain(x)
        assert_close(maps[2], last, rtol=0, atol=0)
        assert_close(maps[3], nn.functional.max_pool2d(last, 2), rtol=0, atol=0)
        assert_close(maps[1], pyramid.pyramid.up2(last), rtol=1e-5, atol=1e-5)


def test_pyramid_trains_and_checkpointing_changes_nothing():
    x, grads = torch.randn(2, 3, 96, 117), []
    state = randomise(LTMViT(**TINY, slots="fast", simple_pyramid=True)).state_dict()
    for with_cp in (False, True):
        model = LTMViT(**TINY, slots="fast", simple_pyramid=True, with_cp=with_cp).train()
        model.load_state_dict(state)
        sum(m.square().mean() for m in model(x)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g.abs().max() > 0 for g in grads[0].values())
    assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_a_presets_first_blocks_are_a_third():
    with torch.device("meta"):
        assert LTMViT("tiny").plan == ((7,) * 4 + (5,) * 8,)
        assert LTMViT("tiny", slots="fast").plan == ((5,) * 12,)
        assert LTMViT("tiny", slots=(5,)).plan == ((5,) * 12,)


def test_a_plan_says_which_mlps_run_on_slots():
    model, seen = LTMViT(**TINY, slots=((7, 6, 5, 5),), out_indices=(3,)).eval(), []
    for block in model.blocks:
        for module in (block.attn, block.mlp):
            module.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[1] - 1))
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert seen == [196, 196, 196, 144, 144, 100, 100, 100]


def test_a_map_taken_on_the_way_does_not_change_what_follows():
    model = randomise(LTMViT(**TINY, slots="fast", out_indices=(0, 1, 3))).eval()
    last = LTMViT(**TINY, slots="fast", out_indices=(3,)).eval()
    last.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        assert_close(model(x)[-1], last(x)[0], rtol=0, atol=0)


def test_slots_are_returned_where_nothing_is_unmerged():
    plan = ((7, 7, 5, 3),)
    full, slots = (
        LTMViT(**TINY, slots=plan, unmerge=u, out_indices=(1, 2, 3)).eval()
        for u in ("residual", "none")
    )
    slots.load_state_dict(randomise(full).state_dict())
    assert full.strides == (16, 16, 16)
    assert slots.strides == (16, 16 * 7 / 5, 16 * 7 / 3)
    x = torch.randn(1, 3, 224, 112)
    with torch.no_grad():
        found, whole = slots(x), full(x)
    assert [m.shape[2:] for m in found] == [(14, 7), (10, 5), (6, 3)]
    assert_close(found[0], whole[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match="unmerge must be one of residual, plain, none, got 'all'"):
        LTMViT(**TINY, unmerge="all")
    with pytest.raises(ValueError, match="simple_pyramid needs maps of whole strides"):
        LTMViT(**TINY, unmerge="none", simple_pyramid=True)


def test_prefix_tokens_are_carried_along_and_never_merged():
    options = dict(img_size=224, num_layers=3, out_indices=(2,))
    model = LTMViT("vit_small_patch14_reg4_dinov2", slots=(5,), **options).eval()
    seen = []
    model.blocks[0].merge.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape))
    model.blocks[0].mlp.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape))
    with torch.no_grad():
        (maps,) = model(torch.randn(1, 3, 196, 392))
    assert seen == [(1, 14, 28, 384), (1, 5 + 10 * 20, 384)]
    assert maps.shape == (1, 384, 14, 28)


def test_mass_attention_weighs_a_slot_as_its_tokens():
    """A class token sees slots of equal tokens as it would see the tokens."""
    block = randomise(timm.create_model("vit_tiny_patch16_224", depth=1)).blocks[0]
    prefix, token = torch.randn(1, 1, 192), torch.randn(192)
    grid = token.expand(1, 6, 6, 192)
    merged = randomise(TokenMerger(6, 3))(grid)
    outs = {}
    for name, mass_attention in (("weighted", True), ("plain", False)):
        mine = GlobalBlock(block, 3, 3, prefix=1, mass_attention=mass_attention).eval()
        x = torch.cat((prefix, merged.slots.flatten(1, 2)), 1)
        outs[name] = mine(x, (3, 3), merged)[0][:, 0]
    expected = block.eval()(torch.cat((prefix, grid.flatten(1, 2)), 1))[:, 0]
    assert_close(outs["weighted"], expected, rtol=1e-5, atol=1e-5)
    assert (outs["plain"] - expected).abs().max() > 1e-3


def test_options_change_the_maps():
    x, seen = torch.randn(1, 3, 96, 160), []
    start = randomise(LTMViT(**TINY, slots="fast")).state_dict()
    for options in (
        {},
        dict(mass_attention=True),
        dict(steps=0),
        dict(steps=1),
        dict(window_size=5),
        dict(final_norm=True),
    ):
        model = LTMViT(**{**TINY, "slots": "fast", **options}).eval()
        own = model.state_dict()
        fitting = {k: v for k, v in start.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict(fitting, strict=False)
        with torch.no_grad():
            seen.append(model(x)[-1])
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            assert (a - b).abs().max() > 1e-6


def test_random_depth_and_channels_reach_the_blocks():
    model = LTMViT(**TINY, in_channels=5, drop_path_rate=0.4)
    assert model.patch_embed.proj.in_channels == 5
    assert [getattr(b.drop_path1, "drop_prob", 0) for b in model.blocks] == pytest.approx(
        [0, 0.4 / 3, 0.8 / 3, 0.4]
    )


def test_blocks_behind_the_last_map_are_not_built():
    model = LTMViT(**TINY, out_indices=(0, 2))
    assert len(model.blocks) == 3
    assert LTMViT(**TINY).out_indices == (0, 1, 2, 3)
    assert LTMViT(**TINY, out_indices=2).out_indices == (2, 3)
    with torch.device("meta"):
        assert LTMViT("tiny").out_indices == (2, 5, 8, 11)
        assert LTMViT("tiny", simple_pyramid=True).out_indices == (11,)


def test_fresh_weights_leave_masks_at_their_start():
    model = LTMViT(**TINY, simple_pyramid=True, slots=(5,))
    mask = model.blocks[0].merge.mask
    prior, weight = mask.prior.clone(), model.blocks[0].attn.qkv.weight.clone()
    up = model.pyramid.up2.weight.clone()
    nn.init.constant_(model.blocks[0].norm1.weight, 5.0)
    model.init_weights()
    assert (model.blocks[0].norm1.weight == 1).all()
    assert not torch.equal(model.blocks[0].attn.qkv.weight, weight)
    assert not torch.equal(model.pyramid.up2.weight, up)
    assert_close(mask.prior, prior, rtol=0, atol=0)
    assert 0.01 < model.pos_embed.std() < 0.03  # timm's, not a layer's default


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="resnet50"), "unknown arch 'resnet50': choose from tiny, small"),
        (dict(arch="vit_nowhere"), "unknown arch 'vit_nowhere': choose from"),
        (dict(arch="vit_relpos_small_patch16_224"), "unknown arch .* choose from"),
        (dict(arch="vit_small_resnet26d_224"), "unknown arch"),
        (dict(arch="vit_base_patch16_rpn_224", num_layers=1), "ResPostBlock cannot merge tokens"),
        (dict(slots="paper", **TINY), "'paper' exists only for .*vit \\(width 384"),
        (dict(slots=(6, 6), **TINY), "one entry for each of the 1 stages"),
        (dict(slots=((6, 7, 7, 7),), **TINY), "rises"),
        (dict(out_indices=5, **TINY), r"stages from 0 to 3, got \(-1, 0, 1, 2, 3\)"),
        (dict(window_size=0, **TINY), "window_size must be an int >= 1, got 0"),
        (
            dict(simple_pyramid=True, out_indices=(1, 3), **TINY),
            r"one block's map, got out_indices \(1, 3\)",
        ),
        (
            dict(simple_pyramid=True, patch_size=14, **TINY),
            "simple_pyramid needs patches of 4n pixels, got 14",
        ),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LTMViT(**kwargs)
    assert "\n" not in str(error.value)

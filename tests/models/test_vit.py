"""LTM-ViT against timm's VisionTransformer, and its own options."""

import copy

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.testing import assert_close

from ltm_mm.merging import ChainMerge, match, record_merges, rounds
from ltm_mm.models import LTMViT
from ltm_mm.models.backbones.global_blocks import GlobalBlock, merge_blocks

from .contract import BackboneContract, randomise

TINY = dict(arch="tiny", embed_dims=24, num_layers=4, num_heads=2, img_size=96)


class FeaturesOfWhole(VisionTransformer):
    """timm's ViT as a backbone: its own parameter names, the maps after its blocks."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.forward_intermediates(x, intermediates_only=True)


class TestViTContract(BackboneContract):
    planned = 1
    tokens = 196
    cell = 16
    plans = ["light", "balanced", "fast", 0.2, ((196, 150, 60, 60),)]

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
    model = LTMViT(arch, keep=None, out_indices=take, final_norm=True, **options).eval()
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
    state = randomise(LTMViT(**TINY, keep=0.4, simple_pyramid=True)).state_dict()
    for with_cp in (False, True):
        model = LTMViT(**TINY, keep=0.4, simple_pyramid=True, with_cp=with_cp).train()
        model.load_state_dict(state)
        sum(m.square().mean() for m in model(x)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g.abs().max() > 0 for g in grads[0].values())
    assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_a_plan_is_what_is_left_after_every_block():
    def plan(*keep):
        with torch.device("meta"):
            return LTMViT(**TINY, **({"keep": keep[0]} if keep else {})).plan

    assert plan(None) == ((196,) * 4,)
    assert plan(49) == plan((49,)) == plan(0.25) == ((49,) * 4,)
    assert plan(((None, 0.5, 98, 1),)) == ((196, 98, 98, 1),)
    assert plan() == plan("balanced")
    assert sum(plan("light")[0]) > sum(plan("balanced")[0]) > sum(plan("fast")[0])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), [(196, 196), (196, 150), (150, 60), (60, 60)]),
        # 6 x 10, 2 x 3 and 1 x 1 patches: the same shares, rounded up.
        ((96, 160), [(60, 60), (60, 46), (46, 19), (19, 19)]),
        ((20, 33), [(6, 6), (6, 5), (5, 2), (2, 2)]),
        ((16, 1), [(1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_a_plan_says_how_many_tokens_each_layer_works_on(size, expected):
    model, seen = LTMViT(**TINY, keep=((196, 150, 60, 60),), out_indices=(3,)).eval(), []
    for block in model.blocks:
        for module in (block.attn, block.mlp):
            module.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[1] - 1))
    with torch.no_grad():
        model(torch.randn(1, 3, *size))
    assert list(zip(seen[::2], seen[1::2], strict=True)) == expected


def test_one_token_is_left_at_least():
    model, seen = LTMViT(**TINY, keep=1).eval(), []
    model.blocks[0].mlp.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape[1]))
    with torch.no_grad():
        for size in ((16, 16), (20, 33), (224, 224), (224, 240)):
            assert all(m.isfinite().all() for m in model(torch.randn(1, 3, *size)))
    assert seen == [2, 2, 2, 3]  # with the class token; the last image has 210 patches


def test_a_map_taken_on_the_way_does_not_change_what_follows():
    model = randomise(LTMViT(**TINY, keep=0.4, out_indices=(0, 1, 3))).eval()
    last = LTMViT(**TINY, keep=0.4, out_indices=(3,)).eval()
    last.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        assert_close(model(x)[-1], last(x)[0], rtol=0, atol=0)


def test_prefix_tokens_are_carried_along_and_never_merged():
    options = dict(img_size=224, num_layers=3, out_indices=(2,))
    model = LTMViT("vit_small_patch14_reg4_dinov2", keep=(98,), **options).eval()
    seen = []
    model.blocks[0].merge.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape))
    model.blocks[0].mlp.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape))
    with torch.no_grad():
        (maps,) = model(torch.randn(1, 3, 196, 392))
    assert seen == [(1, 14 * 28, 384), (1, 5 + 14 * 14, 384)]
    assert maps.shape == (1, 384, 14, 28)


def timm_blocks(depth: int = 4) -> nn.ModuleList:
    return randomise(VisionTransformer(embed_dim=24, depth=depth, num_heads=2)).eval().blocks


@pytest.mark.parametrize("weighted", [True, False])
def test_merging_identical_copies_changes_nothing(weighted, monkeypatch):
    """Class and merged tokens see merged copies as they would see the tokens.

    It would not hold with keys of the same weight.
    """
    if not weighted:
        plain = GlobalBlock._attention_bias
        monkeypatch.setattr(GlobalBlock, "_attention_bias", lambda *args: 0 * plain(*args))
    blocks, prefix = timm_blocks(), torch.randn(2, 3, 24)
    tokens = torch.randn(2, 6, 24)
    copies = tokens[:, torch.randperm(96) % 6]  # sixteen of each kind
    merged = merge_blocks(copy.deepcopy(blocks), (96, 48, 24, 24), 96, prefix=3)
    expected = [torch.cat((prefix, copies), 1)]
    with torch.no_grad():
        for block in blocks:
            expected.append(block(expected[-1]))
        found = merged(expected[0], (6, 16), range(4))
    if weighted:
        assert_close(found, expected[1:], rtol=1e-5, atol=1e-5)
    else:
        assert_close(found[1], expected[2], rtol=1e-5, atol=1e-5)  # attention comes first
        assert (found[2] - expected[3]).abs().max() > 1e-3


def slow_blocks(blocks: nn.ModuleList, x: Tensor, counts: list[int], prefix: int) -> list[Tensor]:
    """timm's blocks on one image ``(T + N, C)``: merge, run, and unmerge step by step."""
    sizes, merges, maps = x.new_ones(len(x) - prefix), [], []
    for block, count in zip(blocks, counts, strict=True):
        attn, normed = block.attn, block.norm1(x)
        q, k, v = attn.qkv(normed).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        weight = torch.cat((x.new_ones(prefix), sizes))  # of keys
        logits = (q @ k.mT * attn.scale).exp() * weight
        out = logits / logits.sum(-1, keepdim=True) @ v
        x = x + attn.proj(out.transpose(0, 1).flatten(1))
        if count < len(sizes):
            tokens = x[prefix:]
            group_index = match(tokens[None], rounds(len(sizes), count), sizes[None]).group_index[0]
            member = nn.functional.one_hot(group_index, count).to(x)  # (M, P)
            total = member.T @ sizes
            merged = member.T @ (tokens * sizes[:, None]) / total[:, None]
            merges.append((tokens, merged, group_index))
            x, sizes = torch.cat((x[:prefix], merged)), total
        x = x + block.mlp(block.norm2(x))
        grid = x[prefix:]
        for tokens, merged, group_index in reversed(merges):
            grid = tokens + (grid - merged)[group_index]
        maps.append(torch.cat((x[:prefix], grid)))
    return maps


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("counts", [(60, 40, 25, 9), (30, 30, 30, 30), (60, 59, 1, 1), (7,) * 4])
def test_a_chain_of_merges_is_undone_step_by_step(counts, prefix):
    blocks = timm_blocks().double()
    x = torch.randn(2, prefix + 60, 24, dtype=torch.float64, requires_grad=True)
    merged = merge_blocks(copy.deepcopy(blocks), counts, 60, prefix)
    expected = [slow_blocks(blocks, image, counts, prefix) for image in x]
    expected = [torch.stack(maps) for maps in zip(*expected, strict=True)]
    found = merged(x, (6, 10), range(4))
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():  # where the groups' sums are known already
        assert_close(merged(x, (6, 10), range(4)), expected, rtol=1e-6, atol=1e-6)
    weights = [torch.randn_like(m) for m in found]
    grads = [
        torch.autograd.grad(
            sum((m * w).sum() for m, w in zip(maps, weights, strict=True)),
            [x, *own.parameters()],
        )
        for maps, own in ((found, merged), (expected, blocks))
    ]
    assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_merges_of_a_chain_speak_of_the_patches():
    model = randomise(LTMViT(**TINY, keep=((98, 98, 40, 9),))).eval()
    with record_merges(model) as merges, torch.no_grad():
        model(torch.randn(2, 3, 96, 160))
    assert [name for name, _ in merges] == [f"blocks.{k}.merge" for k in (0, 2, 3)]
    amounts = torch.rand(2, 6, 10, 3)
    for (_, merge), count in zip(merges, (30, 13, 3), strict=True):
        assert isinstance(merge, ChainMerge)
        assert merge.grid == (6, 10)
        assert merge.merged.shape == (2, count, 24)
        groups = merge.groups()
        assert groups.shape == (2, 6, 10)
        member = nn.functional.one_hot(groups.flatten(1), count).float()  # (B, N, M)
        assert_close(merge.share(amounts), member.mT @ amounts.flatten(1, 2))
        assert_close(merge.mask.sizes, member.sum(1))
    # A merged token is the mean of its tokens, each of which stands for some patches.
    first, second = merges[0][1], merges[1][1]
    sizes = first.mask.sizes.unsqueeze(-1)
    assert_close(second.merged, second.mask.share(second.tokens * sizes) / second.mask.share(sizes))


def test_the_last_norm_is_applied_where_asked_for():
    model = randomise(LTMViT(**TINY, keep=0.4, final_norm=True)).eval()
    plain = LTMViT(**TINY, keep=0.4).eval()
    left = plain.load_state_dict(model.state_dict(), strict=False)
    assert left.unexpected_keys == ["norm.weight", "norm.bias"]
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        for a, b in zip(model(x), plain(x), strict=True):
            assert_close(a, model.norm(b.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


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


def test_fresh_weights_are_timms():
    model = LTMViT(**TINY, simple_pyramid=True)
    weight = model.blocks[0].attn.qkv.weight.clone()
    up = model.pyramid.up2.weight.clone()
    nn.init.constant_(model.blocks[0].norm1.weight, 5.0)
    model.init_weights()
    assert (model.blocks[0].norm1.weight == 1).all()
    assert not torch.equal(model.blocks[0].attn.qkv.weight, weight)
    assert not torch.equal(model.pyramid.up2.weight, up)
    assert 0.01 < model.pos_embed.std() < 0.03  # timm's, not a layer's default


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="resnet50"), "unknown arch 'resnet50': choose from tiny, small"),
        (dict(arch="vit_nowhere"), "unknown arch 'vit_nowhere': choose from"),
        (dict(arch="vit_relpos_small_patch16_224"), "unknown arch .* choose from"),
        (dict(arch="vit_small_resnet26d_224"), "unknown arch"),
        (dict(arch="vit_base_patch16_rpn_224", num_layers=1), "ResPostBlock cannot merge tokens"),
        (dict(keep=(6, 6), **TINY), "one entry for each of the 1 stages"),
        (dict(keep=((60, 70, 70, 70),), **TINY), r"stage 0: \(60, 70, 70, 70\) rises"),
        (dict(keep=((0.5, None, 0.5, 0.5),), **TINY), r"\(98, 196, 98, 98\) rises"),
        (dict(keep=197, **TINY), "197 is neither a number of tokens from 1 to 196"),
        (dict(out_indices=5, **TINY), "stages from 0 to 3, got 5"),
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

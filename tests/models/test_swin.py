"""LTM-Swin against mmdet's SwinTransformer, and its own options."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from torch import Tensor, nn
from torch.testing import assert_close

from ltm_mm.merging import record_merges
from ltm_mm.models import LTMSwin

from .contract import BackboneContract, randomise

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))
# One stage of two blocks, on tokens of 4 pixels.
ONE = dict(embed_dims=8, depths=(2,), num_heads=(2,), strides=(4,), out_indices=(0,))


class TestSwinContract(BackboneContract):
    plans = ["light", "balanced", "fast", 0.2, (None, 25, (None, 36, 16, 9), 1)]

    def build(self, **kwargs):
        return LTMSwin(**TINY, **kwargs)

    def reference(self):
        return SwinTransformer(**TINY)

    def branch_ends(self, model):
        blocks = [block for stage in model.stages for block in stage.blocks]
        return [m for block in blocks for m in (block.attn.w_msa.proj, block.ffn.layers[1])]

    def deterministic(self):
        return dict(drop_path_rate=0.0)

    def is_stem(self, name):
        return name.startswith("patch_embed")

    def in_stage(self, name, stage):
        return name.startswith((f"stages.{stage}.", f"norm{stage}."))


def same_maps(model: nn.Module, reference: nn.Module, *size: int) -> None:
    x = torch.randn(*size)
    model.eval()
    reference.train(False)
    with torch.no_grad():
        found, expected = model(x), reference(x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(window_size=5, mlp_ratio=2, qkv_bias=False, patch_norm=False),
        dict(depths=(1, 2, 3), num_heads=(2, 2, 4), strides=(4, 2, 2), out_indices=(0, 2)),
        dict(patch_size=2, strides=(2, 2, 1, 2), in_channels=4, qk_scale=0.3),
        dict(use_abs_pos_embed=True, pretrain_img_size=(64, 96), act_cfg=dict(type="ReLU")),
    ],
)
def test_options_mean_what_they_mean_in_mmdet(options):
    options = TINY | options
    reference = randomise(SwinTransformer(**options))
    model = LTMSwin(**options, keep=None)
    model.load_state_dict(reference.state_dict())
    same_maps(model, reference, 1, options.get("in_channels", 3), 64, 96)


@pytest.mark.parametrize(
    "size",
    [
        (1, 231, 317),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 224, 224), (2, 320, 256))),
    ],
)
def test_swin_tiny_equals_mmdets(size):
    reference = randomise(SwinTransformer())
    model = LTMSwin(arch="tiny", keep=None)
    model.load_state_dict(reference.state_dict())
    same_maps(model, reference, size[0], 3, *size[1:])


@pytest.mark.parametrize(
    ("arch", "dims"), [("tiny", 96), ("s", 96), ("base", 128), ("large", 192), ("l", 192)]
)
def test_archs_have_the_published_widths(arch, dims):
    with torch.device("meta"):
        model = LTMSwin(arch=arch)
    assert model.out_channels == (dims, 2 * dims, 4 * dims, 8 * dims)
    assert model.strides == (4, 8, 16, 32)
    assert len(model.stages[2].blocks) == (6 if arch == "tiny" else 18)


def test_merging_adds_no_parameters():
    with torch.device("meta"):
        plain, merged = LTMSwin(keep=None), LTMSwin()
    assert list(merged.state_dict()) == list(plain.state_dict())


def test_a_plan_is_what_every_block_keeps():
    def plan(keep, **options):
        with torch.device("meta"):
            return LTMSwin(**TINY | options, keep=keep).plan

    assert plan(None) == ((49,) * 2, (49,) * 2, (49,) * 4, (49,) * 2)
    assert (
        plan(25) == plan(25 / 49) == plan((25,) * 4) == ((25,) * 2, (25,) * 2, (25,) * 4, (25,) * 2)
    )
    assert plan(0.5, window_size=8)[0] == (32, 32)
    # A shifted window has four parts that never mix.
    assert plan(1) == plan(0.001) == ((1, 4), (1, 4), (1, 4, 1, 4), (1, 4))
    assert plan((None, 3, (30, None, 9, 2), (0.9, 5)))[1:] == ((3, 4), (30, 49, 9, 4), (44, 5))


def test_a_plan_says_how_many_tokens_each_block_works_on():
    model, seen = LTMSwin(**TINY, keep=(None, 9, (None, 36, 25, 1), 1)).eval(), []
    for stage in model.stages:
        for block in stage.blocks:
            hook = lambda _m, _x, y: seen.append(y.shape[1])  # noqa: E731
            hook.in_parts = True  # sees what is computed, others see all tokens
            block.attn.w_msa.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    assert seen == [49, 49, 9, 9, 49, 36, 25, 4, 1, 4]


def test_any_number_of_tokens_can_be_kept():
    x, seen = torch.randn(1, 3, 40, 60), []
    plain = randomise(LTMSwin(**ONE, keep=None, drop_path_rate=0.0)).eval()
    with torch.no_grad():
        for keep in range(1, 50):
            model = LTMSwin(**ONE, keep=keep, drop_path_rate=0.0).eval()
            model.load_state_dict(plain.state_dict(), strict=False)
            seen.append(model(x)[0])
        expected = plain(x)[0]
    errors = torch.stack([(y - expected).norm() for y in seen])
    assert errors[-1] == 0
    assert (errors[:-1] > 0).all()
    assert errors[:16].mean() > errors[16:32].mean() > errors[32:48].mean()


def slow_block(block: nn.Module, x: Tensor) -> Tensor:
    """``Y = Z + U (f(X~) - X~)`` of one image ``(H, W, C)``, one window after the other."""
    cut, attn, (height, width, dim) = block.attn.windows, block.attn.w_msa, x.shape
    w, y, heads = cut.size, x.clone(), attn.num_heads
    rows, cols = cut.counts(height, width)
    shift_index = cut.shift_index(height, width, x.device)
    for n in range(rows * cols):
        # Place of each token in the padded grid, and which side of the seam it is from.
        i, k = (torch.arange(w) + start * w + cut.shift for start in divmod(n, cols))
        part = ((i >= rows * w)[:, None] * 2 + (k >= cols * w)[None, :]).flatten()
        i, k = (i % (rows * w))[:, None], (k % (cols * w))[None, :]
        real = ((i < height) & (k < width)).flatten()
        token_ids = (i.clamp(max=height - 1) * width + k.clamp(max=width - 1)).flatten()
        z = x.flatten(0, 1)[token_ids] * real[:, None]
        kind = None if shift_index is None else shift_index[n : n + 1]
        mask = block.merge(z[None, None], real.float()[None, None], kind)
        group_index, roots = mask.group_index[0, 0], mask.roots[0, 0]
        u = nn.functional.one_hot(group_index, len(roots)).float()
        merged = (u * real[:, None]).T @ z / (u.T @ real.float()).clamp(min=1)[:, None]
        normed = block.norm1(merged) * (u.T @ real.float() > 0)[:, None]
        q, k, v = attn.qkv(normed).view(len(roots), 3, heads, -1).permute(1, 2, 0, 3)
        index = attn.relative_position_index[roots][:, roots]
        bias = attn.relative_position_bias_table[index].permute(2, 0, 1)
        logits = attn.scale * q @ k.mT + bias + u.sum(0).log()
        logits = logits.masked_fill(part[roots][:, None] != part[roots][None, :], -torch.inf)
        after = merged + attn.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(-1, dim))
        after = after + block.ffn(block.norm2(after))
        back = (after - merged)[group_index][real]
        y.view(-1, dim)[token_ids[real]] += back
    return y


@pytest.mark.parametrize("size", [(14, 21), (17, 23), (3, 5)])
@pytest.mark.parametrize("window", [4, 5, 7, 8, 12])
def test_a_merged_block_is_its_formula_window_by_window(window, size):
    model = randomise(LTMSwin(**ONE, window_size=window, keep=0.5, drop_path_rate=0.0)).eval()
    x = torch.randn(2, *size, 8)
    with torch.no_grad():
        for block in model.stages[0].blocks:
            expected = torch.stack([slow_block(block, image) for image in x])
            assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [25, 9, None])
@pytest.mark.parametrize("token", [(2, 3), (8, 9), (12, 12)])
def test_a_token_is_seen_in_its_own_window(token, keep):
    """By all of its tokens; in a shifted one by those of its part."""
    model = randomise(LTMSwin(**ONE, keep=keep, drop_path_rate=0.0)).eval()
    x = torch.randn(1, 14, 16, 8)
    other = x.clone()
    other[0, token[0], token[1]] += torch.randn(8)
    for block in model.stages[0].blocks:
        with torch.no_grad():
            changed = (block(other) != block(x)).any(-1)[0]
        windows = block.attn.windows
        ids = torch.arange(6).view(1, 6, 1, 1).expand(-1, -1, 49, -1)  # of windows
        near = windows.join(ids, 14, 16)[0, :, :, 0]
        near = near == near[token]
        side = (torch.arange(16) >= windows.shift) == (
            torch.tensor(token)[:, None] >= windows.shift
        )
        in_window = near & side[0, :14, None] & side[1, None, :]
        assert changed[in_window].all()
        # A window's parts never mix, but have a number of groups in common.
        assert not changed[~(in_window if keep is None else near)].any()


def test_a_recorded_merge_is_a_whole_grids(monkeypatch):
    """Even where the block would otherwise work on some rows of windows at a time."""
    monkeypatch.setattr("ltm_mm.layers.swin_block.MERGED_CHUNK", 1)
    model = randomise(LTMSwin(**ONE, keep=9)).eval()
    with record_merges(model) as merges, torch.no_grad():
        model(torch.randn(2, 3, 100, 120))
    assert [merge.merged.shape[:2] for _, merge in merges] == [(2, 4 * 5 * 9)] * 2


def test_absolute_position_embedding_is_resampled():
    model = LTMSwin(**TINY, use_abs_pos_embed=True, pretrain_img_size=64).eval()
    nn.init.constant_(model.absolute_pos_embed, 3.0)
    assert model(torch.randn(1, 3, 75, 117))[0].shape == (1, 16, 19, 30)
    assert_close(model._position_embedding(19, 30), torch.full((1, 19, 30, 16), 3.0))


def test_dropout_and_stochastic_depth_act_in_training_only():
    for option in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
        model = randomise(LTMSwin(**TINY, **{"drop_path_rate": 0.0, option: 0.5}))
        x = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            assert (model.train()(x)[-1] - model(x)[-1]).abs().max() > 1e-4
            assert_close(model.eval()(x)[-1], model(x)[-1], rtol=0, atol=0)


def test_fresh_weights_leave_details_as_they_are():
    model = LTMSwin(**TINY, keep=9, detail=True)
    before = {k: v.clone() for k, v in model.state_dict().items() if ".detail." in k}
    model.init_weights()
    assert_close({k: model.state_dict()[k] for k in before}, before, rtol=0, atol=0)
    detail = model.stages[2].blocks[1].merge.detail
    assert not detail.up.weight.any()
    assert detail.down.weight.std() > 0.05
    assert model.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.std() > 0.01
    assert (model.stages[0].blocks[0].attn.w_msa.qkv.bias == 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(2, 2)), "depths, num_heads and strides must have one entry per stage"),
        (dict(patch_size=8), r"strides\[0\] must equal patch_size 8, got 4"),
        (dict(embed_dims=50), "dim must be a multiple of num_heads, got 50 and 3"),
        (
            dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")),
            "not both",
        ),
        (dict(keep=((7, 5, 6), None, None, None)), "stage 0: give None, .* each of its 2 blocks"),
        (
            dict(keep=(None, 50, None, None)),
            "stage 1: 50 is neither a number of tokens from 1 to 49",
        ),
        (dict(window_size=4, keep=17), "17 is neither a number of tokens from 1 to 16"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LTMSwin(**kwargs)
    assert "\n" not in str(error.value)

"""LTM-Swin against mmdet's SwinTransformer, and its own options."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from torch import nn
from torch.testing import assert_close

from ltm_mm.models import LTMSwin

from .contract import BackboneContract, randomise

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))


class TestSwinContract(BackboneContract):
    plans = ["light", "balanced", "fast", (None, 5, (7, 6, 5, 4), 1)]

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
    model = LTMSwin(**options, slots=None)
    model.load_state_dict(reference.state_dict())
    same_maps(model, reference, 1, options.get("in_channels", 3), 64, 96)


@pytest.mark.parametrize("size", [(1, 224, 224), (1, 320, 256), (2, 231, 317)])
def test_swin_tiny_equals_mmdets(size):
    reference = randomise(SwinTransformer())
    model = LTMSwin(arch="tiny", slots=None)
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


def test_masks_add_less_than_two_percent_parameters():
    with torch.device("meta"):
        plain, merged = LTMSwin(slots=None), LTMSwin(slots="balanced")
    ratio = sum(p.numel() for p in merged.parameters()) / sum(p.numel() for p in plain.parameters())
    assert 1 < ratio < 1.02


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


def test_steps_choose_what_decides_the_mask():
    x, states = torch.randn(1, 3, 64, 64), []
    start = randomise(LTMSwin(**TINY)).state_dict()
    for steps in (0, 1, 2):
        model = LTMSwin(**TINY, steps=steps).eval()
        model.load_state_dict(start, strict=False)
        with torch.no_grad():
            states.append(model(x)[-1])
    assert (states[0] - states[1]).abs().max() > 1e-5
    assert (states[1] - states[2]).abs().max() > 1e-5


def test_fresh_weights_leave_masks_at_their_start():
    model = LTMSwin(**TINY)
    model.init_weights()
    mask = model.stages[2].blocks[1].merge.mask
    assert mask.log_sharpness == 0
    assert mask.prior.abs().max() > 1
    assert model.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.std() > 0.01
    assert (model.stages[0].blocks[0].attn.w_msa.qkv.bias == 0).all()


def test_slots_cover_their_windows_pixels():
    """A merged block's attention on a map that merging keeps equals attention on tokens."""
    options = TINY | dict(drop_path_rate=0.0)
    plain = LTMSwin(**options, slots=None)
    for block in plain.stages[0].blocks:
        nn.init.zeros_(block.attn.w_msa.relative_position_bias_table)
    merged = LTMSwin(**options, slots=(5, None, None, None))
    merged.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 1, 1).expand(1, 3, 56, 56)  # a constant image
    with torch.no_grad():
        assert_close(merged.eval()(x)[0], plain.eval()(x)[0], rtol=1e-4, atol=1e-4)


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
        (dict(slots=((7, 5, 6), None, None, None)), "one int for each of its 2 blocks"),
        (dict(slots=((5, 6), None, None, None)), "stage 0: .* rises"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LTMSwin(**kwargs)


def test_returned_slots_are_what_the_stage_left():
    plan = (None, None, (5, 4, 4, 4), None)
    model = randomise(LTMSwin(**TINY, slots=plan, unmerge="none")).eval()
    seen = {}
    model.stages[2].register_forward_hook(lambda _m, _x, y: seen.update(full=y[0], slots=y[1]))
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 96, 160))
    assert seen["full"].shape[1:3] == (6, 10)
    assert seen["slots"].shape[1:3] == (4, 7)  # 7 -> 5 -> 4: ceil(ceil(6 * 5 / 7) * 4 / 5)
    assert_close(maps[2], model.norm2(seen["slots"]).permute(0, 3, 1, 2))

"""LTM-MobileViT against timm's MobileViT, and its own options."""

import pytest
import timm
import torch
from timm.models.byobnet import ByobNet
from timm.models.mobilevit import model_cfgs
from torch import nn
from torch.testing import assert_close

from ltm_mm.models import LTMMobileViT
from ltm_mm.models.backbones.mobilevit import MobileVitLTMBlock

from .contract import BackboneContract, randomise

ALL = (0, 1, 2, 3, 4)


class FeaturesOfWhole(ByobNet):
    """timm's classifier as a backbone: its own parameter names, its stages' maps."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], self.final_conv(x)]


class TestMobileViTContract(BackboneContract):
    stages = 5
    planned = 5
    one_plan_per_map = False
    plans = ["light", "balanced", "fast", (None, None, 5, (8, 3, 3, 2), (6, 6, 1))]

    def build(self, **kwargs):
        return LTMMobileViT(**{"arch": "xxs", "out_indices": ALL, **kwargs})

    def reference(self):
        return FeaturesOfWhole(model_cfgs["mobilevit_xxs"], num_classes=0)

    def branch_ends(self, model):
        return [
            end
            for stage in model.stages[2:]
            for block in stage[1].transformer
            for end in (block.attn.proj, block.mlp.fc2)
        ]

    def is_stem(self, name):
        return name.startswith("stem.")

    def in_stage(self, name, stage):
        return name.startswith(f"stages.{stage}.")


@pytest.mark.parametrize("size", [(256, 256), (231, 317)])
@pytest.mark.parametrize("arch", ["xxs", "xs", "s"])
def test_equals_timms_features_only_model(arch, size):
    model = LTMMobileViT(arch, slots=None, out_indices=ALL).eval()
    reference = timm.create_model(f"mobilevit_{arch}", features_only=True).eval()
    flat = {k.replace("stages.", "stages_", 1): v for k, v in model.state_dict().items()}
    reference.load_state_dict(flat)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        found, expected = model(x), reference(x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert list(model.out_channels) == reference.feature_info.channels()
    assert list(model.strides) == reference.feature_info.reduction()


def test_unfolding_and_folding_are_timms_and_exact():
    block = timm.create_model("mobilevit_xxs").stages[2][1].eval()
    mine = MobileVitLTMBlock(block, (8, 8), window=8)
    x = torch.randn(2, 48, 12, 20)
    with torch.no_grad():
        assert_close(mine(x), block(x), rtol=1e-5, atol=1e-5)
    mine.transformer = Passed()
    mine.norm = nn.Identity()
    assert_close(mine._attend(x), x, rtol=0, atol=0)


class Passed(nn.Module):
    """A transformer that changes nothing."""

    def forward(self, x, size, take):
        assert x.shape[1] == size[0] * size[1]
        return [(x, size)]

    def __len__(self):
        return 1


def test_a_plan_says_which_mlps_run_on_slots():
    plan = (None, None, (8, 6), 4, (8, 8, 2))
    model, seen = LTMMobileViT("xxs", slots=plan).eval(), []
    for stage in model.stages[2:]:
        for block in stage[1].transformer:
            for module in (block.attn, block.mlp):
                module.register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape[:2])))
    with torch.no_grad():
        model(torch.randn(1, 3, 512, 256))
    # Four grids per image: 32 x 16, 16 x 8 and 8 x 4 tokens each.
    stage2 = [512, 512, 512, 288]
    stage3 = [128, 32, 32, 32, 32, 32, 32, 32]
    stage4 = [32, 32, 32, 32, 32, 2]
    assert seen == [(4, n) for n in stage2 + stage3 + stage4]


def test_options_change_the_maps():
    x, seen = torch.randn(1, 4, 128, 160), []
    start = randomise(LTMMobileViT("xxs", in_channels=4)).state_dict()
    for options in ({}, dict(steps=0), dict(steps=1), dict(window_size=4)):
        model = LTMMobileViT("xxs", in_channels=4, **options).eval()
        own = model.state_dict()
        fitting = {k: v for k, v in start.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict(fitting, strict=False)
        with torch.no_grad():
            seen.append(model(x)[-1])
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            assert (a - b).abs().max() > 1e-6


def test_random_depth_reaches_the_blocks():
    model = LTMMobileViT("xxs", drop_path_rate=0.4)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) > 0.3


def test_norm_eval_keeps_running_statistics():
    for norm_eval in (False, True):
        model = LTMMobileViT("xxs", norm_eval=norm_eval)
        assert model.train() is model
        norm = model.stages[4][1].conv_proj.bn
        before = norm.running_mean.clone()
        model(torch.randn(2, 3, 64, 64))
        assert torch.equal(norm.running_mean, before) is norm_eval
        assert model.training


def test_stages_behind_the_last_map_are_not_built():
    model = LTMMobileViT("xs", out_indices=(1, 3))
    assert len(model.stages) == 4
    assert not list(model.final_conv.parameters())
    assert model.out_channels == (48, 80)
    assert model.strides == (4, 16)
    assert list(LTMMobileViT("xs").final_conv.parameters())


def test_the_final_convolution_is_frozen_with_the_last_stage():
    model = LTMMobileViT("xxs", frozen_stages=5)
    assert not any(p.requires_grad for p in model.parameters())
    model = LTMMobileViT("xxs", frozen_stages=4)
    assert all(p.requires_grad for p in model.final_conv.parameters())


def test_fresh_weights_leave_masks_at_their_start():
    model = LTMMobileViT("xxs", slots=(None, None, 5, 5, 5))
    mask = model.stages[2][1].transformer[0].merge.mask
    prior, norm = mask.prior.clone(), model.stages[2][1].norm
    nn.init.constant_(norm.weight, 5.0)
    before = model.stages[0][0].conv2_kxk.conv.weight.clone()
    model.init_weights()
    assert (norm.weight == 1).all()
    assert not torch.equal(model.stages[0][0].conv2_kxk.conv.weight, before)
    assert_close(mask.prior, prior, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="v2"), "unknown arch 'v2': choose from xxs, xs, s"),
        (dict(slots=(None, 6, 6, 6, 6)), "slots of stage 1: the stage has no attention"),
        (dict(slots=(None, None, (8, 6, 6), 6, 6)), "one int for each of its 2 blocks"),
        (dict(arch="xxs", slots="paper"), "'paper' exists only for .*mobilevit \\(width 96"),
        (dict(window_size=0), "window_size must be an int >= 1, got 0"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LTMMobileViT(**kwargs)
    assert "\n" not in str(error.value)

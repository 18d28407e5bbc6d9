"""LTM-MobileViT against timm's MobileViT, and its own options."""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import ByobNet
from timm.models.mobilevit import model_cfgs
from torch import nn
from torch.testing import assert_close

from ltm_mm.merging import record_merges
from ltm_mm.models import LTMMobileViT
from ltm_mm.models.backbones.mobilevit import merge_block

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
    plan_entries = 5
    merging_stages = 3
    tokens = 64
    cell = 16
    side = 512
    plans = ["light", "balanced", "fast", 0.2, (None, None, 25, (None, 9, 9, 4), (36, 36, 1))]

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
    model = LTMMobileViT(arch, keep=None, out_indices=ALL).eval()
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
    mine = merge_block(copy.deepcopy(block), (64, 64))
    x = torch.randn(2, 48, 12, 20)
    with torch.no_grad():
        assert_close(mine(x), block(x), rtol=1e-5, atol=1e-5)
    mine.transformer = Passed()
    mine.norm = nn.Identity()
    assert_close(mine._attend(x), x, rtol=0, atol=0)


class Passed(nn.Module):
    """A transformer that changes nothing."""

    def forward(self, x, size, with_cp):
        assert x.shape[1] == size[0] * size[1]
        return x

    def __len__(self):
        return 1


def test_a_plan_says_how_many_tokens_each_layer_works_on():
    plan = (None, None, (None, 36), 16, (64, 0.9, 4))
    model, seen = LTMMobileViT("xxs", keep=plan).eval(), []
    assert model.plan == ((), (), (64, 36), (16,) * 4, (64, 58, 4))
    for stage in model.stages[2:]:
        for block in stage[1].transformer:
            for module in (block.attn, block.mlp):
                module.register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape[:2])))
    with torch.no_grad():
        model(torch.randn(1, 3, 512, 256))
        model(torch.randn(2, 3, 33, 64))
    # Four grids per image: 32 x 16, 16 x 8 and 8 x 4 tokens each.
    stage2 = [512, 512, 512, 288]
    stage3 = [128, 32, 32, 32, 32, 32, 32, 32]
    stage4 = [32, 32, 32, 29, 29, 2]
    # 3 x 4, 2 x 2 and 1 x 1: the same shares, rounded up.
    small = [12, 12, 12, 7, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert seen == [(4, n) for n in stage2 + stage3 + stage4] + [(8, n) for n in small]


def test_merging_does_not_pay_by_default():
    with torch.device("meta"):
        assert all(count == 64 for stage in LTMMobileViT("xxs").plan for count in stage)


def test_the_four_grids_of_an_image_are_merged_each_by_itself():
    """Pixels of one place in their patches do not meet those of another."""
    block = randomise(timm.create_model("mobilevit_xxs").stages[2][1]).eval()
    mine = merge_block(copy.deepcopy(block), (32, 8))
    x = torch.randn(1, 64, 12, 20)
    other = x.clone()
    other[:, :, 4, 7] += torch.randn(64)
    with torch.no_grad():
        changed = (mine._attend(other) != mine._attend(x)).any(1)[0]
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[0::2, 1::2] = True
    assert_close(changed, expected, rtol=0, atol=0)


def test_merges_are_recorded_with_their_grids():
    model = LTMMobileViT("xxs", keep=(None, None, (None, 36), 16, None)).eval()
    with record_merges(model) as merges, torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
    assert [name for name, _ in merges] == [
        "stages.2.1.transformer.1.merge",
        "stages.3.1.transformer.0.merge",
    ]
    for (_, merge), size, count in zip(merges, [(4, 6), (2, 3)], [14, 2], strict=True):
        assert merge.grid == size
        assert merge.merged.shape[:2] == (8, count)  # four grids per image
        assert merge.groups().shape == (8, *size)


def test_random_depth_reaches_the_blocks():
    model = LTMMobileViT("xxs", drop_path_rate=0.4)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[0] < 0.1
    assert rates[-1] > 0.3
    x = torch.randn(2, 3, 64, 64)
    a, b = (model.train()(x)[-1] for _ in range(2))
    assert (a - b).abs().max() > 1e-4
    a, b = (model.eval()(x)[-1] for _ in range(2))
    assert torch.equal(a, b)


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


def test_fresh_weights_are_timms():
    model = LTMMobileViT("xxs")
    norm = model.stages[2][1].norm
    nn.init.constant_(norm.weight, 5.0)
    before = model.stages[0][0].conv2_kxk.conv.weight.clone()
    model.init_weights()
    assert (norm.weight == 1).all()
    assert not torch.equal(model.stages[0][0].conv2_kxk.conv.weight, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="v2"), "unknown arch 'v2': choose from xxs, xs, s"),
        (dict(keep=(None, 6, 6, 6, 6)), "keep of stage 1: the stage has no attention"),
        (dict(keep=(None, None, (8, 6, 6), 6, 6)), "give None, a number, .* its 2 blocks"),
        (dict(keep=(None, None, (6, 8), 6, 6)), r"stage 2: \(6, 8\) rises"),
        (dict(keep=65), "65 is neither a number of tokens from 1 to 64"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LTMMobileViT(**kwargs)
    assert "\n" not in str(error.value)

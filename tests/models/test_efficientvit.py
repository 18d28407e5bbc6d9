"""LTM-EfficientViT against timm's EfficientViT (MIT Han Lab), and its own options."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.layers.swap_class import restore_class
from ltm_mm.merging import record_merges
from ltm_mm.merging.grid import GridMerge
from ltm_mm.models import LTMEfficientViT
from ltm_mm.models.backbones.efficientvit import merge_stage

from .contract import BackboneContract, randomise


class FeaturesOfWhole(nn.Module):
    """timm's classifier as a backbone: its own parameter names, its stages' maps."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        whole = timm.create_model(f"efficientvit_{arch}")
        self.stem, self.stages = whole.stem, whole.stages

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class TestEfficientViTContract(BackboneContract):
    tokens = 64
    masks_learn = True
    mask_name = ".merge.mask"
    atol = 1e-4  # another memory format sums in another order; in fp64 see below
    merging_stages = 2
    cell = 8
    side = 512
    like = 0.98  # convolutions see places
    plans = ["light", "balanced", "fast", 0.2, (None, None, 25, (None, 9))]

    def build(self, **kwargs):
        return LTMEfficientViT(**{"arch": "b0", **kwargs})

    def reference(self):
        return FeaturesOfWhole("b0")

    def branch_ends(self, model):
        blocks = [b for stage in model.stages[2:] for b in list(stage.blocks)[1:]]
        return [
            end
            for b in blocks
            for end in (b.context_module.main.proj, b.local_module.main.point_conv)
        ]

    def merge_by_place(self, model, monkeypatch):
        for name, parameter in model.named_parameters():
            if name.endswith(".log_scale"):
                nn.init.constant_(parameter, -torch.inf)

    def is_stem(self, name):
        return name.startswith("stem.")

    def in_stage(self, name, stage):
        return name.startswith(f"stages.{stage}.")


def same_as_timm(arch: str, *size: int) -> None:
    """The weights of ours in timm's ``features_only`` model give the same maps."""
    model = LTMEfficientViT(arch, keep=None).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.momentum = 0.5
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # running statistics that keep the maps near 1
    reference = timm.create_model(f"efficientvit_{arch}", features_only=True)
    flat = {
        k.replace("stem.", "stem_", 1).replace("stages.", "stages_", 1): v
        for k, v in model.state_dict().items()
    }
    reference.load_state_dict(flat)
    x = torch.randn(*size)
    with torch.no_grad():
        maps, expected = model.eval()(x), reference.eval()(x)
    assert len(maps) == len(expected)
    for a, b in zip(maps, expected, strict=True):
        # Another memory format and number of threads sum in another order, which shows in
        # single numbers near zero: fp32 is compared on the whole map, fp64 number by number.
        assert (a - b).norm() <= 1e-5 * b.norm()
    with torch.no_grad():
        maps, expected = model.double()(x.double()), reference.double()(x.double())
    for a, b in zip(maps, expected, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert list(model.out_channels) == reference.feature_info.channels()
    assert list(model.strides) == reference.feature_info.reduction()


@pytest.mark.parametrize("size", [(1, 3, 224, 224), (2, 3, 231, 317)])
@pytest.mark.parametrize("arch", ["b0", pytest.param("b1", marks=pytest.mark.slow)])
def test_equals_timms_features_only_model(arch, size):
    same_as_timm(arch, *size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 3, 224, 224), (2, 3, 231, 317)])
@pytest.mark.parametrize("arch", ["b2", "b3", "l1", "l2", "l3"])
def test_larger_archs_equal_timms(arch, size):
    same_as_timm(arch, *size)


@pytest.mark.parametrize("arch", ["b2", "l1"])
def test_has_timms_names_and_merges_in_attention_stages_only(arch):
    with torch.device("meta"):
        whole = timm.create_model(f"efficientvit_{arch}").state_dict()
        plain = LTMEfficientViT(arch, keep=None)
        merged = LTMEfficientViT(arch, keep=0.4)
    names = [key for key in whole if not key.startswith("head.")]
    assert list(plain.state_dict()) == names
    new = [key for key in merged.state_dict() if key not in set(names)]
    assert all(".merge." in key for key in new)
    last = {"b": {"2", "3"}, "l": {"3"}}[arch[0]]
    assert {key.split(".")[1] for key in new} == last
    assert [bool(plan) for plan in merged.plan] == [str(i) in last for i in range(4)]


def test_a_plan_says_how_many_tokens_each_module_works_on():
    model = LTMEfficientViT("b1", keep=(None, None, (None, 36, 25), 0.25)).eval()
    sizes = []
    for stage in model.stages[2:]:
        for block in list(stage.blocks)[1:]:
            for module in (block.context_module, block.local_module):
                module.register_forward_hook(lambda _m, _x, y: sizes.append(tuple(y.shape[2:])))
    with torch.no_grad():
        model(torch.randn(1, 3, 256, 512))
    stage2 = [(16, 32)] * 3 + [(12, 24)] * 2 + [(10, 20)]
    stage3 = [(8, 16)] + [(4, 8)] * 7
    assert sizes == stage2 + stage3


def test_merging_does_not_pay_by_default():
    with torch.device("meta"):
        assert all(count == 64 for stage in LTMEfficientViT("b0").plan for count in stage)


def test_merged_tokens_beyond_the_edge_are_left_out():
    """A grid of 9 x 11 tokens at 8 -> 6 needs 7 x 9 of them, not two windows' 12 x 12."""
    model = LTMEfficientViT("b0", keep=(None, None, (36, 25), None)).eval()
    grids, earlier = [], []
    for block in list(model.stages[2].blocks)[1:]:
        block.local_module.register_forward_hook(lambda _m, x, _y: grids.append(x[0].shape[2:]))
        block.merge.register_forward_pre_hook(lambda _m, args: earlier.append(args[1]))
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 144, 176))
    assert grids == [(7, 9), (6, 8)]
    assert earlier[0] is None
    mass = earlier[1].merged_mass()
    assert mass.shape == (1, 7, 9, 1)
    assert mass[0, 1, 1] > mass[0, -1, -1] > 0  # one in a corner stands for less
    assert maps[2].shape[2:] == (9, 11)


def test_a_stage_merges_in_place_and_is_given_back_as_it_was():
    stage = timm.create_model("efficientvit_b0").stages[2].eval()
    x = torch.randn(1, 32, 20, 20)
    names, modules = list(stage.state_dict()), list(stage.modules())
    with torch.no_grad():
        before = stage(x)
        assert merge_stage(stage, (36, 16), window=8) is stage
        assert (stage(x) - before).abs().max() > 1e-4
    assert {id(m) for m in modules} < {id(m) for m in stage.modules()}
    for module in list(stage.modules()):
        restore_class(module)
    with torch.no_grad():
        assert_close(stage(x), before, rtol=0, atol=0)
    assert list(stage.state_dict()) == names
    assert list(map(type, stage.modules())) == list(map(type, modules))


def test_norm_eval_keeps_running_statistics():
    for norm_eval in (False, True):
        model = LTMEfficientViT("b0", norm_eval=norm_eval)
        assert model.train() is model
        norm = model.stages[3].blocks[0].main.point_conv.norm
        before = norm.running_mean.clone()
        model(torch.randn(2, 3, 64, 64))
        assert torch.equal(norm.running_mean, before) is norm_eval
        assert model.training


def test_checkpointing_runs_a_block_twice_and_counts_its_batch_once():
    x, states = torch.randn(2, 3, 64, 64), []
    start = LTMEfficientViT("b0", keep=0.4).state_dict()
    for with_cp in (False, True):
        model, runs = LTMEfficientViT("b0", keep=0.4, with_cp=with_cp).train(), []
        model.load_state_dict(start)
        for stage in model.stages:
            stage.blocks[1].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        sum(m.mean() for m in model(x)).backward()
        assert len(runs) == (8 if with_cp else 4)
        states.append(model.state_dict())
    for key, value in states[0].items():
        assert_close(states[1][key], value, rtol=1e-5, atol=1e-6)
    assert states[1]["stages.2.blocks.0.main.point_conv.norm.num_batches_tracked"] == 1


def test_window_size_says_what_numbers_are_of():
    x, seen = torch.randn(1, 4, 128, 160), []
    start = randomise(LTMEfficientViT("b0", in_channels=4)).state_dict()
    for window, count in ((8, 16), (4, 4), (5, 9)):
        model = LTMEfficientViT("b0", keep=0.3, in_channels=4, window_size=window).eval()
        assert model.plan == ((), (), (count, count), (count, count))
        model.load_state_dict(start, strict=False)
        with torch.no_grad():
            seen.append(model(x)[-1])
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            assert (a - b).abs().max() > 1e-6


def test_merges_are_recorded_with_their_grids():
    model = LTMEfficientViT("b0", keep=(None, None, (36, 25), 0.25)).eval()
    with record_merges(model) as merges, torch.no_grad():
        maps = model(torch.randn(2, 3, 144, 176))
    names = [f"stages.{stage}.blocks.{k}.merge.mask" for stage, k in ((2, 1), (2, 2), (3, 1))]
    assert [name for name, _ in merges] == names
    grids = [(9, 11), (9, 11), (5, 6)]
    for (_, merge), size, count in zip(merges, grids, [7 * 9, 6 * 8, 3 * 3], strict=True):
        assert isinstance(merge, GridMerge)
        assert merge.grid == size
        assert merge.merged.shape[:2] == (2, count)
        assert merge.groups().shape == (2, *size)
    assert [m.shape[2:] for m in maps[2:]] == [(9, 11), (5, 6)]


def test_stages_behind_the_last_map_are_not_built():
    model = LTMEfficientViT("b1", out_indices=(0, 2))
    assert len(model.stages) == 3
    assert model.out_channels == (32, 128)
    assert model.strides == (4, 16)


def test_fresh_weights_leave_masks_at_their_start():
    model = LTMEfficientViT("b0", keep=0.4)
    norm = model.stages[2].blocks[0].main.point_conv.norm
    nn.init.constant_(norm.weight, 5.0)
    before = model.stages[0].blocks[0].main.point_conv.conv.weight.clone()
    mask = model.stages[2].blocks[1].merge.mask
    prior = mask.prior.clone()
    model.init_weights()
    assert (norm.weight == 1).all()
    assert not torch.equal(model.stages[0].blocks[0].main.point_conv.conv.weight, before)
    assert_close(mask.prior, prior, rtol=0, atol=0)
    assert mask.log_scale == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="m0"), "unknown arch 'm0': choose from b0, b1"),
        (dict(keep=(None, 36, 36, 36)), "keep of stage 1: the stage has no attention"),
        (dict(arch="l1", keep=(None, None, 9, 9)), "keep of stage 2: the stage has no attention"),
        (dict(keep=(None, None, (36, 25), 4)), "stage 2: give None, a number, .* its 3 blocks"),
        (dict(keep=(None, None, (25, 25, 36), 4)), r"stage 2: \(25, 25, 36\) rises"),
        (dict(keep=30), "30 is no square number; near are 16, 25, 36"),
        (dict(keep=63), "63 is no square number; near are 49, 64"),
        (dict(window_size=0), "window_size must be an int >= 1, got 0"),
        (dict(window_size=(8, 4)), r"window_size must be an int >= 1, got \(8, 4\)"),
        (dict(window_size=4, keep=25), "25 is neither a number of tokens from 1 to 16"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        LTMEfficientViT(**kwargs)
    assert "\n" not in str(error.value)

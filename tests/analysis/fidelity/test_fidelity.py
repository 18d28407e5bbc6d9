"""Fidelity: its measures by hand, its baselines by their laws, and whole runs on tiny models."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.copies import in_our_blocks, shared_copy, whole_plan
from ltm_mm.analysis.benchmark.equal_time import smaller_sizes
from ltm_mm.analysis.fidelity import compare as fidelity_run
from ltm_mm.analysis.fidelity.agreement import (
    LabelMapTally,
    TopClasses,
    average_precision,
    decide,
    near_boundaries,
    relative_error,
    resized,
)
from ltm_mm.analysis.fidelity.baselines import (
    GlobalPool,
    GridPool,
    Pool,
    TomeBlock,
    pooled,
    tome_groups,
    with_tome,
)
from ltm_mm.analysis.fidelity.report import Fidelity, FidelityRow
from ltm_mm.analysis.fidelity.tool import run_fidelity
from ltm_mm.engine import load_config
from ltm_mm.engine.build import model_builder
from ltm_mm.engine.photos import resize_sample
from ltm_mm.engine.predictions import Instances
from ltm_mm.errors import UserError
from ltm_mm.merging import record_merges
from ltm_mm.models import LTMEfficientViT, LTMSwin, LTMViT
from ltm_mm.models.backbones.global_blocks import Chain, GlobalBlock
from ltm_mm.models.backbones.swin import SwinBlock
from ltm_mm.ops import window_regions
from tests.conftest import ROOT, load_file

NAN = float("nan")


# ------------------------------------------------------------------------------------ measures


def test_relative_error_by_hand():
    plain = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(plain, plain) == 0.0
    assert relative_error(plain, plain + torch.tensor([[0.0, 3.0], [4.0, 0.0]])) == 1.0
    assert relative_error(plain.half(), 3 * plain.half()) == 2.0


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_near_boundaries_against_a_loop(distance):
    labels = np.random.default_rng(0).integers(0, 2, (3, 4)).repeat(5, 0).repeat(4, 1)
    slow = np.zeros(labels.shape, bool)
    for (y, x), label in np.ndenumerate(labels):
        for (v, u), other in np.ndenumerate(labels):
            slow[y, x] |= label != other and (y - v) ** 2 + (x - u) ** 2 <= distance**2
    assert 0 < slow.mean() < 1
    assert np.array_equal(near_boundaries(labels, distance), slow)
    assert not near_boundaries(np.zeros((2, 2)), 3).any()  # smaller than the distance, too


def test_label_maps_count_pixels_over_photos():
    plain = np.zeros((2, 8), int)
    plain[:, :2] = 1  # near its boundary: the first five columns
    other = plain.copy()
    other[0, 0], other[0, 7] = 5, 5
    tally = LabelMapTally()
    tally.add(plain, other)
    assert tally.measures() == {"pixels": 14 / 16, "within 3 px": 9 / 10}
    tally.add(np.zeros((4, 4), int), np.zeros((4, 4), int))
    assert tally.measures() == {"pixels": 30 / 32, "within 3 px": 9 / 10}
    flat = LabelMapTally()
    flat.add(np.zeros((2, 2)), np.zeros((2, 2)))
    assert flat.measures() == pytest.approx({"pixels": 1.0, "within 3 px": NAN}, nan_ok=True)


def test_top_classes_and_logits():
    tally = TopClasses()
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    tally.add(decide(logits, logits), decide(-logits, logits))
    tally.add(np.array([2]), np.array([2]))
    assert tally.measures() == {"top-1": 1 / 3}


def test_logits_are_compared_at_the_plain_ones_size():
    plain = torch.zeros(1, 2, 4, 4)
    small = torch.tensor([[[[9.0, -9.0]], [[0.0, 0.0]]]])
    labels = decide(small, plain)
    assert labels.tolist() == [[0, 0, 1, 1]] * 4
    with pytest.raises(ValueError, match=r"got a tensor \(1, 2, 3\)"):
        decide(torch.zeros(1, 2, 3), plain)


def instances(boxes: list, scores: list, labels: list | None = None, masks=None) -> Instances:
    labels = [0] * len(boxes) if labels is None else labels
    return Instances(np.array(boxes, float), np.array(labels), np.array(scores), masks)


ONE, TWO, TINY = [10, 10, 90, 90], [100, 100, 180, 190], [5, 100, 25, 120]


def test_detections_that_stay_have_an_ap_of_one():
    plain = [instances([ONE, TINY, TWO], [0.9, 0.8, 0.1], [1, 0, 1]), instances([TWO], [0.4])]
    assert average_precision(plain, plain) == {"box AP": 1.0, "box AP small": 1.0}


def test_half_the_detections_lost():
    plain, other = [instances([ONE, TWO], [0.9, 0.8])], [instances([ONE], [0.9])]
    precision = average_precision(plain, other)
    assert precision["box AP"] == pytest.approx(51 / 101)  # recall 0 .. 0.5 of 101 steps
    assert np.isnan(precision["box AP small"])
    assert average_precision(plain, [instances([], [])])["box AP"] == 0.0


def test_a_box_that_moves_counts_up_to_its_overlap():
    moved = [instances([[10, 10, 90, 74]], [0.9])]  # IoU 0.8 with ONE: thresholds 0.5 .. 0.8
    assert average_precision([instances([ONE], [0.9])], moved)["box AP"] == pytest.approx(0.7)


def test_mask_ap_and_ground_truth_by_confidence():
    masks = np.zeros((2, 200, 200), bool)
    masks[0, 10:90, 10:90] = masks[1, 100:190, 100:180] = True
    plain = [instances([ONE, TWO], [0.9, 0.8], masks=masks)]
    half = masks.copy()
    half[0, 10:74] = False  # IoU 0.2
    other = [instances([ONE, TWO], [0.9, 0.8], masks=half)]
    precision = average_precision(plain, other)
    assert precision["box AP"] == 1.0
    assert precision["mask AP"] < 0.6
    assert average_precision(plain, plain)["mask AP"] == 1.0
    unsure = average_precision([instances([ONE], [0.2])], [instances([ONE], [0.9])])
    assert np.isnan(unsure["box AP"])


# ----------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize(("window", "shift"), [(7, 0), (7, 3), (4, 2), (8, 0), (12, 6)])
def test_pooling_groups_partition_every_window_by_place(window, shift):
    count = window * window
    tokens = torch.randn(2, 4, count, 3)
    kinds = torch.arange(4) if shift else None
    regions = window_regions(window, shift)
    place = torch.cartesian_prod(torch.arange(window), torch.arange(window)).float()
    for keep in range(4 if shift else 1, count):
        groups = Pool(window, keep, shift)(tokens, None, kinds)
        g, u = groups.masks()
        assert_close(u.sum(-1), torch.ones(2, 4, count))
        assert_close(g.sum(-2), torch.ones(2, 4, keep))  # no group is empty
        assert_close(groups.sizes, u.sum(-2))
        assert_close(groups.group_index[0], groups.group_index[1])  # whatever the tokens are
        if shift:
            assert (
                (u.mT @ torch.nn.functional.one_hot(regions.long()).float() > 0).sum(-1).eq(1).all()
            )
        far = (place - place[groups.roots[0, 0]][groups.group_index[0, 0]]).norm(dim=-1).max()
        assert far <= 2 * window / keep**0.5


def test_pooling_keeps_padding_apart():
    mass = torch.ones(1, 2, 49)
    mass[:, 1, 30:] = 0
    groups = Pool(7, 12)(torch.randn(3, 2, 49, 4), mass, None)
    _, u = groups.masks()
    real = (u * mass.unsqueeze(-1)).sum(-2)
    padded = (u * (1 - mass).unsqueeze(-1)).sum(-2)
    assert (padded > 0).any()
    assert not ((real > 0) & (padded > 0)).any()


def test_grid_pool_gives_the_masks_that_a_grid_merge_reads():
    tokens, mass = torch.randn(2, 3, 64, 5), torch.rand(2, 3, 64) + 0.1
    mask = GridPool(8, 16)(tokens, mass)
    assert_close(mask.g.sum(-2), torch.ones(2, 3, 16))
    assert_close(mask.merged, mask.g.mT @ tokens)
    assert sorted(mask.u[0, 0].sum(0).tolist()) == [4.0] * 16


@torch.no_grad()
def test_pooling_identical_tokens_changes_nothing():
    plain = tiny_swin(None)
    for module in plain.modules():
        if isinstance(module, SwinBlock):
            module.attn.w_msa.relative_position_bias_table.zero_()
    merged = tiny_swin((None, (5, 6)))
    merged.load_state_dict(plain.state_dict())
    model = pooled(merged)
    assert sum(isinstance(m, Pool) for m in model.modules()) == 2
    image = torch.randn(1, 3, 1, 1).expand(1, 3, 64, 64)  # 16 x 16 and 8 x 8 tokens, all alike
    assert_close(model(image), plain(image), atol=1e-5, rtol=1e-5)
    other = torch.randn(1, 3, 64, 64)
    assert (model(other)[1] - plain(other)[1]).abs().max() > 1e-3


def tiny_swin(keep) -> LTMSwin:
    torch.manual_seed(0)
    return LTMSwin(
        embed_dims=16, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1),
        window_size=4, keep=keep,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_pooling_stands_in_every_family():
    vit = pooled(LTMViT("tiny", keep=((98, 98, 49, 49),), num_layers=4, out_indices=(3,)).eval())
    assert sum(isinstance(m, GlobalPool) for m in vit.modules()) == 2
    with record_merges(vit) as merges:
        (found,) = vit(torch.randn(2, 3, 64, 128))  # 4 x 8 tokens
    assert found.shape == (2, 192, 4, 8)
    assert [m.merged.shape[1] for _, m in merges] == [16, 8]
    groups = merges[-1][1].groups()
    assert sorted(groups.unique().tolist()) == list(range(8))
    for group in range(8):  # neighbours: squares of 2 x 2 tokens
        y, x = (groups[0] == group).nonzero().T
        assert len(y) == 4
        assert (y.max() - y.min()) + (x.max() - x.min()) == 2
    grid = pooled(LTMEfficientViT("b0", keep=(None, None, 36, 36)).eval())
    assert sum(isinstance(m, GridPool) for m in grid.modules()) == 2
    assert [m.shape[2:] for m in grid(torch.randn(1, 3, 96, 64))][-1] == (3, 2)


def test_tome_against_a_loop():
    metric, sizes = torch.randn(2, 11, 6), torch.rand(2, 11) + 1
    groups = tome_groups(metric, 3, sizes)
    for b in range(2):
        x = torch.nn.functional.normalize(metric[b], dim=-1)
        first, second = list(range(1, 11, 2)), list(range(0, 11, 2))
        best = {i: max(second, key=lambda j, i=i: float(x[i] @ x[j])) for i in first}
        merging = sorted(first, key=lambda i: -float(x[i] @ x[best[i]]))[:3]
        wanted = {frozenset([j, *(i for i in merging if best[i] == j)]) for j in second}
        wanted |= {frozenset([i]) for i in first if i not in merging}
        group_index = groups.group_index[b].tolist()
        assert {frozenset(k for k in range(11) if group_index[k] == p) for p in range(8)} == wanted
        assert all(group_index[root] == p for p, root in enumerate(groups.roots[b].tolist()))
    assert_close(groups.sizes.sum(-1), sizes.sum(-1))
    assert tome_groups(metric, 0, None) is None
    assert tome_groups(metric, 99, None).count == 6


@torch.no_grad()
def test_tome_blocks_without_pairs_are_the_blocks_themselves():
    vit = LTMViT("tiny", keep=None, num_layers=2, out_indices=(0, 1)).eval()
    image = torch.randn(2, 3, 64, 64)
    before = vit(image)
    tome = with_tome(shared_copy(vit), 0)
    assert sum(isinstance(m, TomeBlock) for m in tome.modules()) == 2
    assert_close(tome(image), before, atol=1e-5, rtol=1e-5)
    assert all(isinstance(block, GlobalBlock) for block in vit.blocks)


@torch.no_grad()
def test_tome_loses_nothing_where_tokens_come_in_pairs():
    vit = LTMViT("tiny", keep=None, num_layers=2, out_indices=(1,)).eval()
    tokens = torch.randn(1, 8, 192).repeat_interleave(2, 1)
    x = torch.cat((torch.randn(1, 1, 192), tokens), 1)
    tome = with_tome(shared_copy(vit), 8)
    tome.blocks[1].pairs = 0  # runs on eight tokens that count twice each
    plain = vit.blocks(x, (4, 4), (1,))
    assert_close(tome.blocks(x, (4, 4), (1,)), plain, atol=1e-5, rtol=1e-5)
    assert tome.blocks[0](x, Chain((4, 4))).shape[1] == 9


# ------------------------------------------------------------------------------- models in memory


def classifier(size: int = 64) -> nn.Module:
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        size, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7
    ).eval()


class Clock:
    """Time that passes in predictions: by pixel, half as much where a model merges."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    @torch.no_grad()
    def predict(self, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
        merging = any(getattr(m, "merge", None) is not None for m in model.modules())
        self.now += image[0, 0].numel() * (0.5 if merging else 1.0)
        return model(image)


def test_a_whole_run_on_a_classifier():
    model, clock = classifier(), Clock()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = [torch.randn(1, 3, 64, 64)] * 3
    seen: list[tuple] = []
    measured = ltm_mm.fidelity(
        model, images, ["balanced", ((98,) * 4,)], clock.predict, rounds=2, progress=False,
        clock=clock, watch=lambda row, place, out: seen.append((row.name, place, out.shape)),
    )  # fmt: skip
    kinds = [row.kind for row in measured.rows]
    assert kinds == ["plain", "plain", *["plan", "image", "pooling", "tome"] * 2]
    plain, ours, first = measured.rows[:3]
    assert plain.errors == [0.0] * 4
    assert plain.agreement == ours.agreement == {"top-1": 1.0}
    assert max(ours.errors) < 1e-5
    assert plain.macs == ours.macs > first.macs
    assert min(first.errors[1:]) > 1e-3
    with torch.no_grad():  # the last map: what the classifier reads
        merged = ltm_mm.apply(shared_copy(model), "balanced")
        tokens = [m.forward_features(images[0])[:, 1:] for m in (model, merged)]
    assert first.errors[-1] == pytest.approx(relative_error(*tokens), rel=1e-4)
    assert measured.speedup(first).median == 2.0
    image, pooling, tome = measured.rows[3:6]
    assert image.name == "image of 32 x 32"  # 64 is slower, and 32 pixels are one step
    assert measured.speedup(image).median == 4.0
    assert tome.macs <= first.macs
    assert len({len(row.errors) for row in measured.rows}) == 1
    assert len(seen) == 3 * len(measured.rows)
    assert seen[0] == ("plain", 0, (1,))
    assert {row.plan for row in measured.rows[2:6]} == {"balanced"}
    assert pooling.errors != first.errors
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert type(model).__name__ == "VisionTransformer"
    assert not model.training
    shared = {id(p) for p in in_our_blocks(model, None).parameters()}
    assert shared == {id(p) for p in model.parameters()}
    lines = measured.table().splitlines()
    assert len(lines) == len(measured.rows) + 2
    assert lines[0].startswith("| model | GMACs | ms (quartiles) | speed-up (quartiles) | error")
    assert lines[4].startswith("| balanced | ")
    assert "| 2.00x (2.00 - 2.00) |" in lines[4]


def test_plans_that_save_no_time_are_one_sentence():
    """In place of a smaller image of the plain one's size behind each of them."""
    clock = Clock()

    def slow(model, image):
        out = clock.predict(model, image)
        merging = any(getattr(m, "merge", None) is not None for m in model.modules())
        clock.now += 2.0 * image[0, 0].numel() * merging
        return out

    measured = ltm_mm.fidelity(
        classifier(), [torch.randn(1, 3, 64, 64)], ["light", "balanced"], slow, rounds=1,
        baselines=["image"], progress=False, clock=clock,
    )  # fmt: skip
    assert [row.name for row in measured.rows] == [
        "plain",
        "plain, our blocks",
        "light",
        "balanced",
    ]
    assert measured.no_faster == ["light", "balanced"]
    last = measured.table().splitlines()[-1]
    assert last == "Merging saves no time at this image size: light, balanced."


def test_times_of_a_stand_in():
    """Times and the smaller image's share are of another model, errors of the one given."""
    model, clock = mmdet_swin(), Clock()
    sizes: list[tuple[int, ...]] = []

    def build(keep):
        other = two_stages(keep)
        other.register_forward_pre_hook(lambda m, args: sizes.append(tuple(args[0].shape[2:])))
        other.forward = lambda x: clock.predict(SizeOnly(keep), x)
        return other

    found = ltm_mm.fidelity(
        model, [torch.randn(1, 3, 60, 80)], [9], baselines=["image"], rounds=1, progress=False,
        clock=clock, timed=(build, torch.zeros(1, 3, 96, 128)),
    )  # fmt: skip
    plain, _, plan, image = found.rows
    assert {(96, 128)} < set(sizes) <= set(smaller_sizes((96, 128)))
    assert plan.errors[-1] > 1e-3
    assert plan.seconds == [96 * 128 / 2]
    assert image.seconds == [64 * 96]  # the largest that takes no longer
    assert image.name == "image of 32 x 32"  # nearer to half of the area than 60 x 64
    assert image.errors[-1] > 1e-3
    assert plain.macs > image.macs > 0


class SizeOnly(nn.Module):
    """Stands for a model that merges, or not, and gives nothing back."""

    def __init__(self, merge: object) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, x: torch.Tensor) -> None:
        """No output."""


def two_stages(keep: object = None) -> LTMSwin:
    torch.manual_seed(0)
    return LTMSwin(
        embed_dims=16, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1),
        keep=keep,
    ).eval()  # fmt: skip


def test_tome_gets_the_work_of_the_plan():
    most = {0: 100, 1: 90, 2: 80, 3: 70, 4: 60}
    macs = lambda pairs: most.get(pairs, 50)  # noqa: E731
    found = [fidelity_run.equal_work_pairs(macs, wanted) for wanted in (95, 90, 75, 61, 50)]
    assert found == [1, 1, 3, 4, 5]


def mmdet_swin() -> nn.Module:
    from mmdet.models.backbones.swin import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        embed_dims=16, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1)
    )
    model.eval()  # not chained: it returns None
    return model


def test_maps_alone_of_a_backbone_and_no_timing(tmp_path):
    model = mmdet_swin()
    images = [torch.randn(1, 3, 60, 90)]
    keep = {"one": (None, (25, 16))}
    measured = ltm_mm.fidelity(model, images, keep, rounds=0, progress=False)
    assert [(row.name, row.kind) for row in measured.rows] == [
        ("plain", "plain"), ("plain, our blocks", "plain"), ("one", "plan"), ("pooling", "pooling"),
    ]  # fmt: skip
    one = measured.rows[2]
    assert one.errors[0] < 1e-6 < 1e-3 < one.errors[1]
    assert one.agreement == {}
    assert "pixels" not in measured.table()
    (file,) = measured.save(tmp_path / "a.b")
    assert file.name == "a.b.json"
    assert json.loads(file.read_text())["rows"][2]["errors"] == one.errors


def test_whole_plans_are_what_keep_takes():
    family, plan = whole_plan(classifier())
    assert (family, plan) == ("vit", ((196,) * 4,))
    assert whole_plan(tiny_swin(None)) == ("swin", ((16, 16), (16, 16)))
    import timm

    family, plan = whole_plan(timm.create_model("mobilevit_xxs"))
    assert family == "mobilevit"
    assert [len(stage) for stage in plan] == [0, 0, 2, 4, 3]


def test_a_maps_error_is_nan_where_the_pieces_differ():
    maps = [torch.ones(1, 2, 4, 4)]
    assert fidelity_run.map_errors(maps, [resized(maps[0], (2, 2))]) == [0.0]
    assert np.isnan(fidelity_run.map_errors(maps, maps * 2)).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(images=[]), "images must hold at least one"),
        (dict(baselines=["rival"]), "baselines must be of image, pooling, tome, jpeg, got 'rival'"),
        (dict(keep=[None]), "keep=None merges nothing"),
        (dict(keep=None), "keep=None merges nothing"),
        (dict(keep=["gentle"]), "unknown preset keep='gentle'"),
        (dict(keep="gentle"), "unknown preset keep='gentle'"),
        (dict(baselines="rival"), "baselines must be of image, pooling, tome, jpeg, got 'rival'"),
        (dict(rounds=-1), "rounds must be an int >= 0"),
        (dict(rounds=1.5), "rounds must be an int >= 0"),
        (dict(threads=0), "threads must be an int >= 1 or None, got 0"),
        (dict(threads="2"), "threads must be an int >= 1 or None, got '2'"),
        (dict(model=nn.Linear(2, 2)), "Linear has no stages to merge in"),
        (dict(model=ltm_mm.apply(classifier())), "call ltm_mm.remove"),
    ],
)
def test_bad_arguments_are_one_line(change, says):
    arguments = dict(model=classifier(), images=[torch.zeros(1, 3, 64, 64)], rounds=0) | change
    with pytest.raises(ValueError, match=says) as error:
        ltm_mm.fidelity(**arguments, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "images",
    [torch.ones(3, 64, 64)[None], [torch.ones(3, 64, 64)], (torch.ones(1, 3, 64, 64) for _ in "a")],
    ids=["tensor", "without a batch", "generator"],
)
def test_one_plan_and_images_in_any_form(images):
    options = dict(baselines="pooling", rounds=0, progress=False)
    found = ltm_mm.fidelity(classifier(), images, "light", **options)
    whole = ltm_mm.fidelity(classifier(), [torch.ones(1, 3, 64, 64)], ["light"], **options)
    assert found.rows == whole.rows


# --------------------------------------------------------------------------------------- the tool


CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3,
                           bgr_to_rgb=True, pad_val=0, seg_pad_val=255),
    backbone=dict(type='ltm_mm.LTMSwin', embed_dims=16, depths=(2, 2), num_heads=(2, 2),
                  strides=(4, 2), out_indices=(0, 1), keep=None),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=1, channels=16, num_convs=1,
                     num_classes=5, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64)),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, str, str]:
    """A config, a checkpoint and a folder of photos."""
    folder = tmp_path_factory.mktemp("fidelity")
    (folder / "tiny.py").write_text(CONFIG)
    model = model_builder(load_config(folder / "tiny.py"), None)(None)
    for parameter in model.parameters():
        parameter.data.mul_(1.01)  # not what another seed or build would draw
    torch.save(model.state_dict(), folder / "tiny.pth")
    (folder / "photos").mkdir()
    for k in range(4):
        photo = Image.effect_noise((90 + k, 70), 80).resize((45, 35)).resize((180, 140 + k))
        photo.convert("RGB").save(folder / "photos" / f"{k}.jpg")
    return str(folder / "tiny.py"), str(folder / "tiny.pth"), str(folder / "photos")


def test_tool_prints_a_table_and_writes_files(trained, tmp_path, capsys):
    measured = run_fidelity(
        *trained, ltm=["(None, (25, 16))"], num_photos=2, rounds=1, threads=1, out=str(tmp_path)
    )
    rows = [row for row in measured.rows if row.kind != "image"]  # there where merging saves time
    assert [row.kind for row in rows] == ["plain", "plan", "pooling", "jpeg", "jpeg", "jpeg"]
    plain, plan, pooling, *saved = rows
    assert [row.name[-2:] for row in saved] == ["98", "90", "75"]
    assert 0 < saved[0].errors[0] < saved[1].errors[0] < saved[2].errors[0]
    assert {row.macs for row in saved} == {plain.macs}
    assert 0.9 < plain.steadiness <= 1
    assert all(math.isnan(row.steadiness) for row in (pooling, *saved))
    assert plain.errors == [0.0, 0.0]
    assert plain.agreement == {"pixels": 1.0, "within 3 px": 1.0}
    assert plan.errors[0] == 0.0 < plan.errors[1] < pooling.errors[1]
    assert 0 < plan.agreement["pixels"] <= 1
    out = capsys.readouterr().out
    assert "2 photos of" in out
    assert measured.table() in out
    assert Fidelity.read(tmp_path / "tiny.json").table() == measured.table()
    data = json.loads((tmp_path / "tiny.json").read_text())
    assert data["metadata"]["size"] == [64, 96]
    assert data["rows"][0]["agreement"] == plain.agreement
    assert (tmp_path / "tiny.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_with_unknown_figures_is_read_back(tmp_path):
    unknown = dict(errors=[0.0, NAN], agreement={"box AP": NAN}, metrics={"bbox_mAP": NAN})
    found = Fidelity([FidelityRow("plain", **unknown), FidelityRow("fast", "plan", **unknown)], {})
    (file,) = found.save(tmp_path / "found")
    assert Fidelity.read(file).table() == found.table()


def test_picture_shows_all_points_and_the_plain_models_time():
    """Two errors that are nearly the same lie inside the axes, not on their edge."""
    seconds = dict(plain=[1.0, 1.0], fast=[0.8, 0.8], fastest=[0.7, 0.7])
    errors = dict(plain=0.0, fast=0.1247, fastest=0.1248)
    rows = [
        FidelityRow(name, "plain" if name == "plain" else "plan", name, 1, seconds[name], [error])
        for name, error in errors.items()
    ]
    (axis,) = Fidelity(rows, {}).figure().axes
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert left < 0.69
    assert right > 1
    assert bottom == 0
    assert top > 0.13


def test_models_of_a_config_share_the_checkpoints_weights(trained):
    build = model_builder(load_config(trained[0]), trained[1])
    plain, merged = build(None), build((None, (25, 16)))
    assert_close(plain.state_dict(), torch.load(trained[1], weights_only=True), rtol=0, atol=0)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in merged.parameters()}


def test_metrics_are_the_configs_own(trained, tmp_path, capsys, monkeypatch):
    asked = []

    def evaluate(*args: str, ltm: str, **kwargs: object) -> dict:
        asked.append((args, ltm))
        return {"mIoU": np.float32(40 + len(asked)), "file": "a.json"}

    monkeypatch.setattr("ltm_mm.engine.run.evaluate", evaluate)
    found = run_fidelity(
        *trained, ltm=["25"], num_photos=1, rounds=0, baselines=[], out=str(tmp_path), metric=True
    )
    assert asked == [(trained[:2], "none"), (trained[:2], "25")]
    assert [row.metrics for row in found.rows] == [{"mIoU": 41.0}, {"mIoU": 42.0}]
    assert "| 42 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "tiny.json").read_text())["rows"][1]["metrics"] == {"mIoU": 42.0}


def test_size_changes_what_is_compared(trained, tmp_path):
    found = run_fidelity(
        *trained, ltm=["(None, 25)"], size=(40, 64), num_photos=1, rounds=0, out=str(tmp_path)
    )
    assert found.metadata["size"] == (40, 64)
    assert not (tmp_path / "tiny.png").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(photos="nowhere"), "nowhere: there is no such image or folder"),
        (dict(photos="{}/empty"), "empty holds no image"),
        (dict(photos="{}/broken"), "broken/a.jpg is damaged or no photo"),
        (dict(out="{}/file"), "file is a file: name a folder"),
        (dict(checkpoint="none.pth"), "none.pth"),
        (dict(config="none.py"), "config none.py does not exist"),
        (dict(ltm=["gentle"]), "--ltm gentle: give none, light"),
        (dict(ltm=["none"]), "is always there"),
        (dict(ltm=["1.0"]), "--ltm 1.0 merges nothing"),
        (dict(rounds=-1), "--rounds must be 0"),
        (dict(num_photos=0), "--num-photos must be 1 or more"),
        (dict(size=(0, 8)), "--size must be 32 or more"),
        (dict(size=(1, 1)), "--size must be 32 or more, got 1 1"),
        (dict(threads=0), "--threads must be 1 or more, got 0"),
        (dict(baselines=["rival"]), "--baselines takes image, pooling, tome, jpeg, got rival"),
        (dict(cpu_time=True), "it needs --threads 1"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(trained, tmp_path, change, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    whole = Path(trained[2], "0.jpg").read_bytes()
    (tmp_path / "broken" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = dict(zip(("config", "checkpoint", "photos"), trained, strict=True))
    arguments |= dict(ltm=["25"], num_photos=1, rounds=0, out=str(tmp_path / "out"))
    change = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(UserError, match=says) as error:
        run_fidelity(**arguments | change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_resized_sample_leads_back_to_the_photo():
    info = BaseDataElement(
        metainfo=dict(img_shape=(60, 90), scale_factor=(0.5, 0.6), ori_shape=(100, 180))
    )
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    small = resize_sample(dict(inputs=image, data_samples=info), (30, 30))
    assert small["inputs"].shape == (3, 30, 30)
    assert small["inputs"].dtype == torch.uint8
    known = small["data_samples"].metainfo
    assert known["img_shape"] == (30, 30)
    assert known["scale_factor"] == pytest.approx((0.5 / 3, 0.3))
    assert known["ori_shape"] == (100, 180)
    assert info.metainfo["img_shape"] == (60, 90)  # the sample itself stays
    same = resize_sample(dict(inputs=image, data_samples=info), (60, 90))
    assert torch.equal(same["inputs"], image)


# --------------------------------------------------------------------------------- trained weights


def test_matching_on_trained_weights_beats_pooling():
    folder = Path(os.environ.get("LTM_SHARED_REAL", ROOT.parent / "shared" / "real"))
    if not (folder / "models.py").is_file():
        pytest.skip(f"no trained networks at {folder}; set LTM_SHARED_REAL to a folder with them")
    shared = load_file("tools/real_weights.py").shared_models()
    images = [x for x, _ in shared.camvid(448, step=50)]
    later = (None, None, (None, 25, 25, 25, 25, 25), None)
    measured = ltm_mm.fidelity(
        shared.street_swin(), images, {"later": later}, rounds=0, progress=False
    )
    plain, ours, plan, pooling = measured.rows
    assert plain.errors == [0.0] * 4
    assert plain.agreement == {"pixels": 1.0, "within 3 px": 1.0}
    assert ours.agreement["pixels"] > 0.9999
    assert plan.errors[:2] == pytest.approx([0, 0], abs=1e-5)
    assert plan.errors[2] < 0.02
    assert plan.agreement["pixels"] > 0.998
    assert pooling.errors[2] > 3 * plan.errors[2]
    assert pooling.agreement["within 3 px"] < plan.agreement["within 3 px"] - 0.05

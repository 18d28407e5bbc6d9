"""The plan for a budget: the choice against brute force, measures by a clock and by hand, runs."""

import itertools
import json
import math
import random

import pytest
import torch
from PIL import Image
from torch import nn

from ltm_mm.analysis.plan.measure import (
    MeasuredModel,
    MergeVariants,
    known_errors,
    measure_errors,
    measure_times,
    squared_error,
    units_of,
)
from ltm_mm.analysis.plan.run import choose_plan, make_plan
from ltm_mm.analysis.plan.search import (
    Option,
    TimedPlan,
    as_text,
    best,
    frontier,
    to_counts,
    to_keep,
)
from ltm_mm.engine import parse_keep
from ltm_mm.errors import UserError
from ltm_mm.families import FAMILIES
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from ltm_mm.models.backbones.swin import SwinBlock

REST = 0.1
BUDGETS = [k / 50 for k in range(10, 60)]


# ---------------------------------------------------------------------------------- the choice


def costs(seed: int, units: int = 4) -> list[list[Option]]:
    """Made-up options; not every merge is faster than none, as on a real machine."""
    rng = random.Random(seed)
    return [
        [Option((49,), rng.uniform(0.2, 0.3), 0.0)]
        + [Option(c, rng.uniform(0.02, 0.3), rng.random()) for c in FAMILIES["swin"].options(1, 49)]
        for _ in range(units)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_plan_within_the_budget_has_less_error(seed):
    units = costs(seed)
    front = frontier(units, REST)
    every = [
        (REST + sum(o.time for o in chosen), sum(o.error for o in chosen))
        for chosen in itertools.product(*units)
    ]
    met = 0
    for budget in BUDGETS:
        within = [error for seconds, error in every if seconds <= budget]
        if not within:
            with pytest.raises(UserError, match=f"the fastest plan takes {min(every)[0]:.2f} of"):
                best(front, budget)
            continue
        plan = best(front, budget)
        met += 1
        assert plan.time <= budget
        assert plan.error == pytest.approx(min(within))
        chosen = [
            next(o for o in options if o.counts == counts)
            for options, counts in zip(units, plan.units, strict=True)
        ]
        assert plan.time == pytest.approx(REST + sum(o.time for o in chosen))
    assert met > 10


def test_a_thinned_frontier_is_nearly_as_good():
    rng = random.Random(3)
    steps = [[rng.uniform(0.5, 1.5) * k for k in range(6)] for _ in range(10)]
    units = [
        [Option((k,), 0.2 - step / 50, step**2) for k, step in enumerate(own)] for own in steps
    ]
    whole, thin = frontier(units, REST), frontier(units, REST, most=200)
    assert len(thin) <= 200 < len(whole)
    for budget in (1.5, 1.7, 1.9, 2.0):
        assert best(thin, budget).time <= budget
        assert best(thin, budget).error <= best(whole, budget - 0.02).error


def test_options_of_every_family():
    assert FAMILIES["swin"].options(1, 49) == [(32,), (25,), (16,), (9,), (5,)]
    square = FAMILIES["efficientvit"].options(2, 64)
    assert square[0] == (64, 49)
    assert square[-1] == (16, 16)
    assert all(math.isqrt(count) ** 2 == count for counts in square for count in counts)
    chained = FAMILIES["vit"].options(12, 196)
    assert (196, 196, 196, 196, 88, 88, 88, 88, 88, 88, 88, 88) in chained
    for counts in (*chained, *FAMILIES["mobilevit"].options(4, 64), *square):
        assert list(counts) == sorted(counts, reverse=True)
    for family, tokens in (("vit", 196), ("mobilevit", 64), ("efficientvit", 64)):
        lengths = {len(FAMILIES[family].options(depth, tokens)) for depth in (2, 3, 4)}
        assert len(lengths) == 1 or family == "vit"


def test_a_plan_is_what_the_backbone_takes():
    whole = ((49, 49), (49, 49), (49,) * 6, (49, 49))
    units = ((49,), (49,), (49,), (25,), *((16,),) * 6, (9,), (32,))
    counts = to_counts(units, whole)
    keep = to_keep(counts, whole)
    assert keep == (None, (None, 25), 16, (9, 32))
    assert parse_keep(as_text(keep)) == keep
    with torch.device("meta"):
        assert LTMSwin(keep=keep).plan == counts
    assert to_keep(whole, whole) is None
    assert as_text(None) == "none"
    gaps = ((), (), (64, 36), (64, 64))
    assert to_counts(((64, 36), (64, 64)), gaps) == gaps
    assert to_keep(gaps, ((), (), (64, 64), (64, 64))) == (None, None, (None, 36), None)


# -------------------------------------------------------------------------------- what is measured


def build_swin(keep) -> nn.Module:
    torch.manual_seed(0)
    return LTMSwin(
        embed_dims=16, depths=(2, 4), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1),
        keep=keep,
    ).eval()  # fmt: skip


def swin_model(build=build_swin) -> MeasuredModel:
    whole = ((49, 49), (49,) * 4)
    return MeasuredModel(build, "swin", whole, lambda model, image: model(image))


class Clock:
    """Time that blocks add to as they run: their tokens, shifted ones' twice as many."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def build(self, keep) -> nn.Module:
        model = build_swin(keep)
        for block in (m for m in model.modules() if isinstance(m, SwinBlock)):
            block.register_forward_hook(self._takes)
        model.patch_embed.register_forward_hook(lambda *_: setattr(self, "now", self.now + 96.0))
        return model

    def _takes(self, block: SwinBlock, *_: object) -> None:
        kept = 49 if block.merge is None else block.merge.keep
        self.now += kept * (2 if block.attn.windows.shift else 1)


@torch.no_grad()
def test_measured_times_are_those_of_the_clock():
    clock = Clock()
    variants = MergeVariants.of(swin_model(clock.build), progress=False)
    times, rest = measure_times(variants, torch.randn(1, 3, 56, 56), 2, clock, progress=False)
    total = 96 + 3 * 49 * 3
    assert rest == pytest.approx(96 / total)
    for k, of_block in enumerate(times):
        for (kept,), share in of_block.items():
            assert share == pytest.approx(kept * (1 + k % 2) / total)
    assert [len(of_block) for of_block in times] == [6] * 6


@torch.no_grad()
def test_measured_errors_are_those_of_one_block_merged():
    model = swin_model()
    variants = MergeVariants.of(model, progress=False)
    images = [torch.randn(1, 3, 56, 56) for _ in range(2)]
    before = [model.outputs(variants.plain, image) for image in images]
    errors = measure_errors(variants, images, progress=False)
    keep = (None, (None, 9, None, None))
    wanted = [
        squared_error(plain, model.outputs(build_swin(keep), image))
        for plain, image in zip(before, images, strict=True)
    ]
    assert errors[3][(9,)] == pytest.approx(sum(wanted) / 2, rel=1e-4)
    assert errors[3][(9,)] > 0
    assert [of_block[(49,)] for of_block in errors] == [0.0] * 6
    assert all(of_block[(5,)] > of_block[(32,)] for of_block in errors)
    after = model.outputs(variants.plain, images[0])  # all is as it was
    torch.testing.assert_close(after, before[0], rtol=0, atol=0)


def test_squared_error_is_the_mean_over_maps():
    plain = [torch.tensor([[[[3.0, 4.0]]]]), torch.ones(1, 1, 2, 2)]
    other = [torch.tensor([[[[3.0, 5.0]]]]), torch.zeros(1, 1, 2, 2)]
    assert squared_error(plain, other) == pytest.approx((0.04 + 1) / 2)


def test_without_photos_fewer_tokens_and_earlier_stages_cost_more():
    errors = known_errors(MergeVariants.of(swin_model(), progress=False))
    for own in errors:
        values = [own[(count,)] for count in (49, 32, 25, 16, 9, 5)]
        assert values[0] == 0
        assert values == sorted(values)
        assert len(set(values)) == 6
    assert errors[0][(25,)] > errors[2][(25,)]
    assert errors[0][(25,)] / errors[0][(9,)] == pytest.approx((24 / 40) ** 2)


@pytest.mark.parametrize(
    ("model", "family", "count"),
    [
        (lambda: build_swin(None), "swin", 6),
        (lambda: LTMEfficientViT("b0"), "efficientvit", 2),
        (lambda: LTMMobileViT("xxs"), "mobilevit", 3),
        (lambda: LTMViT("tiny", keep=None), "vit", 1),
    ],
)
def test_units_of_every_family(model, family, count):
    model = model()
    units = units_of(model, model.plan)
    assert len(units) == count
    kept = to_counts([unit.plain for unit in units], model.plan)
    assert kept == model.plan
    assert all(model.get_submodule(unit.path) is not None for unit in units)
    if family == "swin":
        assert len({unit.timed_as for unit in units}) == 4  # two stages, shifted or not


# ------------------------------------------------------------------------------------------- runs


def test_a_plan_for_a_model_in_memory():
    model, clock = mmdet_swin(), Clock()
    images = [torch.randn(1, 3, 56, 56)]
    choice = choose_plan(
        model, images, 0.6, rounds=1, progress=False, clock=clock,
        timed=(lambda keep: two_stages(clock, keep), images[0]),
    )  # fmt: skip
    assert choice.plan.time <= 0.6
    assert choice.time.median == pytest.approx(choice.plan.time)
    assert choice.error == pytest.approx(choice.plan.error, rel=0.5)  # errors nearly add up
    assert 0 < choice.error < 1
    assert choice.keep_of(choice.plan) == choice.keep
    assert not any(isinstance(m, SwinBlock) for m in model.modules())


def mmdet_swin() -> nn.Module:
    from mmdet.models.backbones.swin import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        embed_dims=16, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1)
    )
    model.eval()  # returns None
    return model


def two_stages(clock: Clock, keep) -> nn.Module:
    torch.manual_seed(0)
    model = LTMSwin(
        embed_dims=16, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1),
        keep=keep,
    ).eval()  # fmt: skip
    for block in (m for m in model.modules() if isinstance(m, SwinBlock)):
        block.register_forward_hook(clock._takes)
    return model


def test_a_plan_that_is_late_as_a_whole_is_chosen_tighter():
    """Merging costs 10 here that no block alone shows."""
    clock = Clock()

    def build(keep) -> nn.Module:
        model = two_stages(clock, keep)
        if keep is not None:
            model.patch_embed.register_forward_hook(
                lambda *_: setattr(clock, "now", clock.now + 10.0)
            )
        return model

    image = torch.randn(1, 3, 56, 56)
    choice = choose_plan(
        mmdet_swin(), [image], 0.6, timed=(build, image), rounds=1, progress=False, clock=clock
    )
    assert choice.time.median <= 0.6
    assert choice.plan.time == pytest.approx(choice.time.median - 10 / (2 * 3 * 49))


def test_tool_writes_the_plan_and_prints_it_first(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "photos" / "a.png")
    torch.save(LTMEfficientViT("b0", keep=None).state_dict(), tmp_path / "b0.pth")
    found = make_plan(
        "ltm-efficientvit-b0", 1.0, str(tmp_path / "b0.pth"), str(tmp_path / "photos"),
        (64, 64), rounds=1, out=str(tmp_path / "out"),
    )  # fmt: skip
    data = json.loads((tmp_path / "out" / "ltm-efficientvit-b0.json").read_text())
    assert data["chosen"]["plan"]["error"] == found.plan.error
    for unit in data["units"]:
        assert unit[0]["error"] == 0
        assert all(option["error"] > 0 for option in unit[1:])
    out = capsys.readouterr().out
    assert "relative error of the maps, measured on 1 photos" in out
    assert f"--ltm '{data['chosen']['keep']}'" in out
    assert out.index("--ltm '") < out.index("ltm-efficientvit-b0.json")
    assert (tmp_path / "out" / "ltm-efficientvit-b0.png").read_bytes()[:4] == b"\x89PNG"


def test_without_photos_the_tool_says_what_errors_are(tmp_path, capsys):
    make_plan("ltm-efficientvit-b0", 1.0, size=(64, 64), rounds=1, out=str(tmp_path))
    assert "estimated from token counts, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(target_time=1.5), "must lie in 0..1"),
        (dict(target_time=0), "must lie in 0..1"),
        (dict(checkpoint="a.pth"), "give both or none"),
        (dict(photos="photos"), "give both or none"),
        (dict(rounds=0), "--rounds must be 1 or more"),
        (dict(size=(0, 64)), "--size must be 32 or more"),
        (dict(config="resnet"), "neither a config file nor one of"),
        (dict(out=__file__), "is a file: name a folder"),
        (dict(cpu_time=True), "it needs --threads 1"),
    ],
)
def test_bad_input_is_one_line(change, says):
    with pytest.raises(UserError, match=says) as error:
        make_plan(**dict(config="ltm-swin-t", target_time=0.5) | change)
    assert "\n" not in str(error.value)


def test_plans_beaten_by_others_are_dropped():
    options = [Option((49,), 0.5, 0.0), Option((25,), 0.6, 0.1), Option((9,), 0.2, 0.3)]
    assert frontier([options], 0.0) == [TimedPlan(((9,),), 0.2, 0.3), TimedPlan(((49,),), 0.5, 0.0)]

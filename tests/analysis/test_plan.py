"""The plan for a budget: the solver against brute force on made-up costs, and one real run."""

import itertools
import json
import random

import pytest
import torch

from ltm_mm.analysis.plan import (
    Option,
    best,
    frontier,
    measure,
    options_of,
    output_damage,
    token_damage,
)
from ltm_mm.analysis.plan_run import make_plan
from ltm_mm.engine import UserError
from ltm_mm.engine.swap import parse_slots
from ltm_mm.models import LTMEfficientViT, LTMSwin

REST = 0.1
BUDGETS = [k / 50 for k in range(10, 60)]


def costs(seed: int, stages: int = 3) -> list[list[Option]]:
    """Made-up options; not every merge is faster than none, as on a real machine."""
    rng = random.Random(seed)
    return [
        [Option((7, 7), rng.uniform(0.2, 0.4), 0.0)]
        + [Option(c, rng.uniform(0.02, 0.4), rng.random()) for c in options_of(2, 7, 4)[1:]]
        for _ in range(stages)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_plan_within_the_budget_has_less_damage(seed):
    stages = costs(seed)
    front = frontier(stages, REST)
    every = [
        (REST + sum(o.latency for o in chosen), sum(o.damage for o in chosen))
        for chosen in itertools.product(*stages)
    ]
    met = 0
    for budget in BUDGETS:
        within = [damage for latency, damage in every if latency <= budget]
        if not within:
            with pytest.raises(UserError, match=f"the fastest plan takes {min(every)[0]:.2f} of"):
                best(front, budget)
            continue
        plan = best(front, budget)
        met += 1
        assert plan.latency <= budget
        assert plan.damage == pytest.approx(min(within))
        chosen = [
            next(o for o in options if o.counts == counts)
            for options, counts in zip(stages, plan.counts, strict=True)
        ]
        assert plan.latency == pytest.approx(REST + sum(o.latency for o in chosen))
    assert met > 10


def test_a_looser_budget_never_has_more_damage():
    front = frontier(costs(7, stages=4), REST)
    damages = [best(front, b).damage for b in BUDGETS if b >= front[0].latency]
    assert damages == sorted(damages, reverse=True)
    assert damages[0] > damages[-1]


def test_options_fall_within_a_stage_and_the_plain_one_comes_first():
    found = options_of(6, 7, 4)
    assert found[0] == (7,) * 6
    assert len(found) == len(set(found)) == 10
    assert all(4 <= later <= first <= 7 for first, later, *_ in found)
    assert options_of(1, 8, 6) == [(8,), (7,), (6,)]
    assert options_of(0, 8, 6) == [()]


def test_slots_are_what_the_backbone_takes():
    counts = ((7, 7), (7, 5), (5, 5, 5, 5, 5, 5), (5, 4))
    (plan,) = frontier([[Option(c, 0.1, 1.0)] for c in counts], 0.0)
    assert plan.slots(7) == "(None, (7, 5), 5, (5, 4))"
    with torch.device("meta"):
        assert LTMSwin(slots=parse_slots(plan.slots(7))).plan == counts
    (plain,) = frontier([[Option((7, 7), 0.5, 0.0)]], 0.0)
    assert plain.slots(7) == "none"


def test_fewer_tokens_are_more_damage():
    found = [token_damage(counts, 7) for counts in ((7, 7), (7, 6), (6, 6), (6, 5), (5, 5))]
    assert found[0] == 0
    assert found == sorted(found)
    assert len(set(found)) == 5


class Clock:
    """Time that stages add to as they run."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_measured_shares_are_those_of_the_clock():
    clock = Clock()
    seconds = {(): (1, 1), (8, 8): (10, 30), (6, 6): (5, 20)}
    backbones = {}
    for k, slots in enumerate((None, (None, None, 6, 6))):
        model = LTMEfficientViT("b0", slots=slots).eval()
        for i, stage in enumerate(model.stages):
            last = model.plan[i][-1:] * 2
            stage.register_forward_hook(_takes(clock, seconds[last][max(i - 2, 0)]))
        backbones[k] = (model, list(model.plan))
    backbones[0][0].stem.register_forward_hook(_takes(clock, 8))
    options, rest = measure(backbones, (64, 64), 2, clock)  # 8 + 1 + 1 + 10 + 30 seconds
    assert rest == pytest.approx(8 / 50)
    found = [{o.counts: o.latency for o in stage} for stage in options]
    one, two = backbones[1][1][2:]
    assert found[0] == found[1] == {(): pytest.approx(1 / 50)}
    assert found[2][one] == pytest.approx(5 / 50)
    assert found[3][two] == pytest.approx(20 / 50)
    assert [stage[0].damage for stage in options] == [0] * 4
    assert options[3][1].damage == pytest.approx(token_damage(two, 8))


def _takes(clock: Clock, seconds: float):
    def hook(*_: object) -> None:
        clock.now += seconds

    return hook


def test_damage_is_the_relative_change_of_the_output():
    x = torch.randn(1, 3, 4)
    double = torch.nn.Linear(4, 4, bias=False)
    double.weight.data = 1.5 * torch.eye(4)
    assert output_damage(double, torch.nn.Identity(), [(x,)]) == pytest.approx(0.25)


def test_real_run_writes_the_plan_and_measures_damage(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "photos" / "a.png")
    torch.save(LTMEfficientViT("b0", slots=None).state_dict(), tmp_path / "b0.pth")
    plan = make_plan(
        "ltm-efficientvit-b0", 1.0, (64, 64), str(tmp_path / "b0.pth"),
        str(tmp_path / "photos"), rounds=1, out=str(tmp_path),
    )  # fmt: skip
    data = json.loads((tmp_path / "ltm-efficientvit-b0.json").read_text())
    assert data["chosen"]["damage"] == plan.damage
    for stage in data["stages"][2:]:
        assert stage[0]["damage"] == 0
        assert all(option["damage"] > 0 for option in stage[1:])
    out = capsys.readouterr().out
    assert "measured on 1 images" in out
    assert out.rstrip().splitlines()[-1] == f"--ltm '{data['chosen']['slots']}'"
    assert (tmp_path / "ltm-efficientvit-b0.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        (dict(target_latency=1.5), "must lie in 0..1"),
        (dict(target_latency=0), "must lie in 0..1"),
        (dict(target_latency=0.5, checkpoint="a.pth"), "give both or none"),
        (dict(target_latency=0.5, images="photos"), "give both or none"),
        (dict(target_latency=0.5, rounds=0), "1 or more"),
        (dict(target_latency=0.5, size=(0, 64)), "1 or more"),
    ],
)
def test_bad_input_is_one_line(kwargs, says):
    with pytest.raises(UserError, match=says) as error:
        make_plan("ltm-swin-t", **kwargs)
    assert "\n" not in str(error.value)

"""Merging plans from every form a user may give."""

import pytest

from ltm_mm.families import FAMILIES
from ltm_mm.presets import NAMES, resolve_plan

SWIN = ("swin", 96)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (None, ((49, 49), (49, 49, 49))),
        (25, ((25, 25), (25, 25, 25))),
        (1, ((1, 1), (1, 1, 1))),
        (49, ((49, 49), (49, 49, 49))),
        (0.5, ((24, 24), (24, 24, 24))),
        (1.0, ((49, 49), (49, 49, 49))),
        (0.001, ((1, 1), (1, 1, 1))),
        ((None, 25), ((49, 49), (25, 25, 25))),
        ((0.5, [None, 25, 0.2]), ((24, 24), (49, 25, 10))),
        ([37, (9, 49, 30)], ((37, 37), (9, 49, 30))),  # a window is merged anew by every block
    ],
)
def test_plans(keep, expected):
    assert resolve_plan(keep, (2, 3), 49, SWIN) == expected


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (50, "keep of stage 0: 50 is neither a number of tokens from 1 to 49 nor a share of them"),
        (0, "keep of stage 0: 0 is neither"),
        (0.0, "keep of stage 0: 0.0 is neither"),
        (1.5, "keep of stage 0: 1.5 is neither"),
        (float("nan"), "keep of stage 0: nan is neither"),
        (
            True,
            "keep must be None, one of light, balanced, fast, fastest, paper, a number of tokens",
        ),
        ((25, True), "keep of stage 1: True is neither"),
        ((25,), "one entry for each of the 2 stages, got"),
        ((25, (9, 9)), "keep of stage 1: give None, a number, or one for each of its 3 blocks"),
        ((25, "fast"), "keep of stage 1: give None, a number"),
        ("quick", "unknown preset keep='quick': choose from light, balanced, fast, fastest, paper"),
    ],
)
def test_what_does_not_fit_is_named(keep, says):
    with pytest.raises(ValueError, match=says):
        resolve_plan(keep, (2, 3), 49, SWIN)


def test_a_chain_of_merges_never_rises():
    assert resolve_plan(((9, 4, 4),), (3,), 49, ("vit", 192), chained=True) == ((9, 4, 4),)
    with pytest.raises(ValueError, match=r"keep of stage 0: \(9, 25, 4\) rises"):
        resolve_plan(((9, 25, 4),), (3,), 49, ("vit", 192), chained=True)
    with pytest.raises(ValueError, match=r"\(9, 49, 4\) rises"):  # None is all of them
        resolve_plan(((9, None, 4),), (3,), 49, ("vit", 192), chained=True)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 36), (0.01, 1), (49, 49), (64, 64), (1.0, 64)])
def test_grids_keep_square_numbers(keep, count):
    model = ("efficientvit", 64)
    assert resolve_plan(keep, (1,), 64, model, chained=True, square=True) == ((count,),)
    with pytest.raises(ValueError, match=r"50 is no square number; near are 36, 49, 64"):
        resolve_plan(50, (1,), 64, model, chained=True, square=True)


def test_stages_without_attention_have_no_plan():
    assert resolve_plan(25, (0, 3), 49, SWIN) == ((), (25, 25, 25))
    assert resolve_plan((None, 25), (0, 2), 49, SWIN) == ((), (25, 25))
    with pytest.raises(ValueError, match="keep of stage 0: the stage has no attention"):
        resolve_plan((36, 25), (0, 2), 49, SWIN)


def test_paper_is_a_plan_per_architecture():
    plans = [(f.name, *key, keep) for f in FAMILIES.values() for key, keep in f.paper.items()]
    for family, width, depths, keep in plans:
        rest = dict(chained=family != "swin", square=family == "efficientvit")
        tokens = dict(swin=49, vit=196, mobilevit=64, efficientvit=64)[family]
        plan = resolve_plan("paper", depths, tokens, (family, width), **rest)
        assert plan == resolve_plan(keep, depths, tokens, (family, width), **rest)
        assert [len(stage) for stage in plan] == list(depths)
    for model, depths in ((("swin", 8), (2, 2, 6, 2)), (SWIN, (2, 2, 18, 2))):
        with pytest.raises(ValueError, match=r"the preset 'paper' exists only for"):
            resolve_plan("paper", depths, 49, model)


@pytest.mark.parametrize(
    ("family", "depths"),
    [
        ("swin", (2, 2, 6, 2)),
        ("swin", (2, 2, 18, 2)),
        ("swin", (2, 2, 2, 2)),
        ("vit", (12,)),
        ("vit", (6,)),
        ("mobilevit", (0, 0, 2, 4, 3)),
        ("efficientvit", (0, 0, 2, 2)),
        ("efficientvit", (0, 0, 0, 6)),
    ],
)
def test_presets_keep_less_from_one_to_the_next(family, depths):
    tokens = {"swin": 49, "vit": 196, "mobilevit": 64, "efficientvit": 64}[family]
    options = dict(chained=family != "swin", square=family == "efficientvit")
    assert set(FAMILIES[family].presets) == set(NAMES) - (
        {"paper"} if family == "swin" else {"fastest", "paper"}
    )
    totals = [sum(depths) * tokens]
    for name in FAMILIES[family].presets:
        plan = resolve_plan(name, depths, tokens, (family, 0), **options)
        assert [len(stage) for stage in plan] == list(depths)
        assert resolve_plan(plan, depths, tokens, (family, 0), **options) == plan
        totals.append(sum(map(sum, plan)))
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_fastest_is_a_swins():
    assert resolve_plan("fastest", (2, 2, 6, 2), 49, SWIN) == (
        (16, 16),
        (12, 12),
        (9, 9, 9, 5, 5, 5),
        (5, 5),
    )
    with pytest.raises(ValueError, match="the preset 'fastest' exists only for a Swin"):
        resolve_plan("fastest", (12,), 196, ("vit", 192), chained=True)

"""Merging plans from every form a user may give."""

import pytest

from ltm_mm.presets import PAPER, PRESETS, check_window, resolve_plan


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (None, ((7, 7), (7, 7, 7))),
        ("light", ((7, 7), (7, 6, 6))),  # two blocks are too few to pay
        ("balanced", ((7, 7), (7, 5, 5))),
        ("fast", ((5, 5), (5, 5, 5))),
        ((None, 5), ((7, 7), (5, 5, 5))),
        ([6, [7, 5, 4]], ((6, 6), (7, 5, 4))),
        ((7, None), ((7, 7), (7, 7, 7))),
    ],
)
def test_plans(slots, expected):
    assert resolve_plan(slots, (2, 3), 7) == expected


def test_one_stage_alone_keeps_its_first_third():
    assert resolve_plan("balanced", (12,), 7) == ((7,) * 4 + (5,) * 8,)
    assert resolve_plan("fast", (12,), 7) == ((5,) * 12,)
    assert resolve_plan("balanced", (2,), 7) == ((7, 5),)


def test_stages_without_attention_have_no_plan():
    assert resolve_plan("balanced", (0, 3), 7) == ((), (7, 5, 5))
    assert resolve_plan((None, 5), (0, 2), 7) == ((), (5, 5))
    with pytest.raises(ValueError, match="stage 0: the stage has no attention"):
        resolve_plan((6, 5), (0, 2), 7)


def test_paper_is_a_plan_per_architecture():
    for (family, width, depths), plan in PAPER.items():
        window = 7 if family in ("swin", "vit") else 8
        found = resolve_plan("paper", depths, window, (family, width))
        assert found == resolve_plan(plan, depths, window)
        assert [len(stage) for stage in found] == list(depths)
    for model, depths in ((None, (2, 2, 6, 2)), (("swin", 96), (2, 2, 18, 2))):
        with pytest.raises(ValueError, match=r"'paper' exists only for swin \(width 96, depths"):
            resolve_plan("paper", depths, 7, model)


@pytest.mark.parametrize("window", [0, -1, 7.0, True, None])
def test_windows_are_whole(window):
    with pytest.raises(ValueError, match="window_size must be an int >= 1, got"):
        check_window(window)


def test_a_backbone_without_a_deep_stage_is_merged_in_all():
    assert resolve_plan("balanced", (2, 1), 7) == ((7, 5), (7,))


@pytest.mark.parametrize("window", [2, 4, 5, 7, 8, 12, 16, 24])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_every_window(preset, window):
    (plan,) = resolve_plan(preset, (4,), window)
    assert window >= plan[0] >= plan[-1] >= 1
    assert resolve_plan((plan,), (4,), window) == (plan,)

"""Merging plans from every form a user may give."""

import pytest

from ltm_mm.presets import PRESETS, resolve_plan


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


def test_a_backbone_without_a_deep_stage_is_merged_in_all():
    assert resolve_plan("balanced", (2, 1), 7) == ((7, 5), (7,))


@pytest.mark.parametrize("window", [2, 4, 5, 7, 8, 12, 16, 24])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_every_window(preset, window):
    (plan,) = resolve_plan(preset, (4,), window)
    assert window >= plan[0] >= plan[-1] >= 1
    assert resolve_plan((plan,), (4,), window) == (plan,)

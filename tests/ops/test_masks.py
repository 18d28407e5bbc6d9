"""The prior and the two masks that logits give."""

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.ops import back_mask, hat_prior, merge_mask

SIZES = [(7, 6), (7, 5), (7, 4), (7, 1), (12, 8), (4, 3), (2, 1)]


@pytest.mark.parametrize(("window", "slots"), SIZES)
def test_prior_is_the_hat_kernel(window, slots):
    prior = hat_prior(window, slots, floor=1e-4)
    for token in range(window * window):
        for slot in range(slots * slots):
            weight = 1.0
            for t, s in [(token // window, slot // slots), (token % window, slot % slots)]:
                distance = abs((t + 0.5) - (s + 0.5) * window / slots) / (window / slots)
                weight *= max(1 - distance, 1e-4)
            assert_close(prior[token, slot].exp(), torch.tensor(weight), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("window", "slots"), SIZES)
def test_prior_keeps_slots_in_place(window, slots):
    """The slots' centres of mass are their places on the slot grid, nearly."""
    prior = hat_prior(window, slots)
    to_slots, back = merge_mask(prior), back_mask(prior)
    axis = torch.arange(window) + 0.5
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    centres = to_slots.T @ places
    axis = (torch.arange(slots) + 0.5) * window / slots
    expected = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    assert (centres - expected).abs().max() < 0.25
    # The way there and back moves no token by more than a slot's pitch.
    assert (back @ centres - places).abs().max() <= window / slots


def test_columns_and_rows_sum_to_one_and_padding_weighs_nothing():
    logits = torch.randn(2, 3, 49, 25)
    mass = torch.ones(1, 3, 49)
    mass[:, 1, 40:] = 0
    mass[:, 2, 1:] = 0  # one real token
    to_slots, back = merge_mask(logits, mass), back_mask(logits)
    assert_close(to_slots.sum(-2), torch.ones(2, 3, 25))
    assert_close(back.sum(-1), torch.ones(2, 3, 49))
    assert (to_slots[:, 1, 40:] == 0).all()
    assert_close(to_slots[:, 2, 0], torch.ones(2, 25))


def test_mass_weighs_tokens_by_what_they_stand_for():
    logits = torch.randn(1, 1, 4, 2)
    twice = merge_mask(logits, torch.tensor([[[2.0, 1, 1, 1]]]))
    doubled = merge_mask(torch.cat([logits[..., :1, :], logits], -2))
    assert_close(twice[..., 0, :], doubled[..., :2, :].sum(-2))
    assert_close(twice[..., 1:, :], doubled[..., 2:, :])

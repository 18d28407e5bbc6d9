"""The laws of merging and unmerging (ltm: any grid, any plan)."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ltm_mm.layers import MaskModule, TokenMerger
from ltm_mm.ops import hat_prior, unmerge_grid

GRIDS = [(7, 7), (14, 21), (9, 16), (1, 30), (8, 6)]


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter away from its special start, so that nothing cancels."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def merger(
    slots: int = 5, steps: int = 1, window: int = 7, for_convolution: bool = False
) -> TokenMerger:
    return randomised(TokenMerger(window, slots, steps, for_convolution))


both = pytest.mark.parametrize("for_convolution", [False, True])


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_masks_sum_to_one_and_slots_form_a_grid(height, width, steps):
    x = torch.randn(2, height, width, 16)
    merged = merger(steps=steps)(x)
    assert merged.slots.shape == (2, -(-height * 5 // 7), -(-width * 5 // 7), 16)
    assert_close(merged.back.sum(-1), torch.ones(merged.back.shape[:-1]))


@both
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_constant_map_stays_constant(height, width, steps, for_convolution):
    x = torch.randn(1, 1, 1, 16).expand(2, height, width, 16)
    merged = merger(steps=steps, for_convolution=for_convolution)(x)
    assert_close(merged.slots, x[:, :1, :1].expand_as(merged.slots))


@both
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_unchanged_slots_give_the_tokens_back_to_the_bit(height, width, for_convolution):
    x = torch.randn(2, height, width, 16)
    first = merger(for_convolution=for_convolution)(x)
    second = merger(slots=3, window=5)(first.slots, first.slot_mass())
    assert_close(unmerge_grid(second.slots, second), first.slots, rtol=0, atol=0)
    assert_close(unmerge_grid(first.slots, first), x, rtol=0, atol=0)


def test_plain_unmerging_leads_back_the_slots_alone():
    x = torch.randn(2, 9, 16, 16)
    module = merger()
    merged = module(x)
    wanted = unmerge_grid(merged.slots + merged.slots.sin(), merged) - x
    module.residual = False
    merged = module(x)
    assert_close(unmerge_grid(merged.slots.sin(), merged), wanted, rtol=1e-5, atol=1e-5)


def test_weight_decay_pulls_the_prior_back_to_the_hat():
    mask = MaskModule(7, 5)
    assert_close(mask.prior, hat_prior(7, 5), rtol=0, atol=0)
    nn.init.normal_(mask.prior_offset)
    before = (mask.prior - hat_prior(7, 5)).norm()
    mask.prior_offset.grad = torch.zeros_like(mask.prior_offset)
    torch.optim.AdamW(mask.parameters(), lr=0.1, weight_decay=1.0).step()
    assert_close((mask.prior - hat_prior(7, 5)).norm(), 0.9 * before)


def test_constant_update_reaches_every_token_whole():
    x = torch.randn(2, 9, 16, 16)
    merged = merger()(x)
    assert_close(unmerge_grid(merged.slots + 0.25, merged), x + 0.25)


def slow_merge(module: TokenMerger, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One window at a time, only its real tokens: the formulas as they are written."""
    mask, w, s = module.mask, module.window, module.slots
    batch, height, width, dim = x.shape
    rows, cols = -(-height // w), -(-width // w)
    slots = x.new_empty(batch, -(-height * s // w), -(-width * s // w), dim)
    restored = x.new_empty(batch, height, width, dim)
    for b in range(batch):
        for r in range(rows):
            for c in range(cols):
                places = [
                    (i, j, (i - r * w) * w + (j - c * w))
                    for i in range(r * w, min((r + 1) * w, height))
                    for j in range(c * w, min((c + 1) * w, width))
                ]
                tokens = torch.stack([x[b, i, j] for i, j, _ in places])
                prior = mask.prior[[k for _, _, k in places]]
                merged, logits = prior.softmax(0).T @ tokens, prior
                to_slots = prior.softmax(0)
                for step in range(mask.steps):
                    z, slot = (F.layer_norm(t, (dim,)) for t in (tokens, merged))
                    logits = prior + mask.sharpness * z @ (slot - slot.mean(0)).T / dim
                    if step < mask.steps - 1:
                        to_slots = logits.softmax(0)
                        merged = to_slots.T @ tokens
                if module.for_convolution:
                    squares = to_slots.T @ tokens.square().sum(1)
                    merged = merged * (squares.sqrt() / merged.norm(dim=1)).clamp(max=2)[:, None]
                kept = slots[b, r * s : (r + 1) * s, c * s : (c + 1) * s]
                kept.copy_(merged.view(s, s, dim)[: kept.shape[0], : kept.shape[1]])
                # Slots beyond the edge are left out; the last ones stand for them.
                i, j = (torch.arange(s).clamp(max=n - 1) for n in kept.shape[:2])
                back = logits.softmax(1) @ kept[i][:, j].flatten(0, 1).sin()  # any update
                for (i, j, _), update in zip(places, back, strict=True):
                    restored[b, i, j] = x[b, i, j] + update
    return slots, restored


@both
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_equals_a_loop_over_real_tokens(height, width, steps, for_convolution):
    """Padding therefore decides nothing: the loop never sees it."""
    module = merger(steps=steps, for_convolution=for_convolution).double()
    x = torch.randn(2, height, width, 16, dtype=torch.float64)
    with torch.no_grad():
        merged = module(x)
        slots, restored = slow_merge(module, x)
        assert_close(merged.slots, slots)
        found = unmerge_grid(merged.slots + merged.slots.sin(), merged)
    assert_close(found, restored)


def test_padding_added_to_make_a_batch_changes_nothing():
    """With the padding marked by zero mass, the image's own part is as if alone."""
    module = merger(steps=2)
    image = torch.randn(1, 9, 16, 16)
    batch = torch.randn(2, 14, 21, 16)
    batch[:1, :9, :16] = image
    mass = torch.ones(2, 14, 21, 1)
    mass[0, 9:] = mass[0, :, 16:] = 0
    together, alone = module(batch, mass), module(image)
    assert_close(together.slots[:1, :7, :12], alone.slots)
    update = alone.slots.sin()
    rows, cols = torch.arange(10).clamp(max=6), torch.arange(15).clamp(max=11)
    padded = torch.cat((update[:, rows][:, :, cols], together.slots[1:].sin()))
    assert_close(
        unmerge_grid(together.slots + padded, together)[:1, :9, :16],
        unmerge_grid(alone.slots + update, alone),
    )


def test_an_image_does_not_depend_on_its_batch():
    module, x = merger(), torch.randn(3, 9, 16, 16)
    batch = module(x)
    for i in range(3):
        alone = module(x[i : i + 1])
        assert_close(batch.slots[i : i + 1], alone.slots)
        assert_close(batch.back[i : i + 1], alone.back)


@pytest.mark.parametrize("rows", [1, 2])  # of windows in a band
@pytest.mark.parametrize(("height", "width"), [*GRIDS, (23, 31)])
def test_bands_of_windows_are_all_windows_at_once(height, width, rows, monkeypatch):
    module, x = merger(steps=2), torch.randn(2, height, width, 16)
    whole = module(x)  # with gradients: at once
    restored = unmerge_grid(whole.slots + whole.slots.sin(), whole)
    values = rows * x[:, :7].numel()
    monkeypatch.setattr(importlib.import_module("ltm_mm.ops.windows"), "BAND", values)
    with torch.no_grad():
        bands = module(x)
        found = unmerge_grid(bands.slots + bands.slots.sin(), bands)
        assert_close(bands.slots, whole.slots, rtol=1e-5, atol=1e-5)
        assert_close(bands.slot_mass(), whole.slot_mass(), rtol=1e-5, atol=1e-5)
    assert_close(found, restored, rtol=1e-5, atol=1e-5)


def test_later_merge_weighs_slots_by_their_mass():
    first = merger()(torch.randn(1, 9, 16, 16))
    assert_close(first.slot_mass().sum(), torch.tensor(9.0 * 16))
    second = merger(slots=3, window=5)(first.slots, first.slot_mass())
    assert_close(second.slot_mass().sum(), torch.tensor(9.0 * 16))
    unweighted = merger(slots=3, window=5)(first.slots)
    assert (second.slots - unweighted.slots).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    module = merger(steps=2)
    merged = module(torch.randn(2, 9, 16, 16))
    unmerge_grid(merged.slots.tanh(), merged).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_slots_are_as_long_as_their_tokens_but_not_blown_up():
    """Means of equally long tokens are as long; opposite tokens stay near their mean, zero."""
    module = TokenMerger(7, 5, steps=0, for_convolution=True)
    similar = 1 + 0.3 * torch.randn(1, 14, 14, 16)
    similar = 3 * similar / similar.norm(dim=-1, keepdim=True)
    assert_close(module(similar).slots.norm(dim=-1), torch.full((1, 10, 10), 3.0))
    columns = torch.ones(1, 14, 14, 16)
    columns[:, :, 1::2] = -1
    module.for_convolution = False
    means = module(columns).slots
    module.for_convolution = True
    assert_close(module(columns).slots, (2 * means).clamp(-1, 1))
    assert module(torch.zeros(1, 7, 7, 16)).slots.abs().max() == 0


@both
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_gradients_are_those_of_finite_differences(steps, for_convolution, monkeypatch):
    """What content steps compare counts as given: it has no gradient."""
    module = randomised(TokenMerger(3, 2, steps, for_convolution)).double()
    later = randomised(TokenMerger(2, 1, steps)).double()
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    parameters = [*module.parameters(), *later.parameters()]
    given, calls = [], []

    def compared(x):
        place = len(calls)
        calls.append(place)
        if place == len(given):
            given.append(F.layer_norm(x.detach(), x.shape[-1:]))
        return given[place]

    monkeypatch.setattr("ltm_mm.layers.mask_module._direction", compared)

    def run(x, *_):
        calls.clear()
        first = module(x)
        second = later(first.slots.sin(), first.slot_mass())
        return unmerge_grid(unmerge_grid(second.slots.cos(), second), first)

    torch.autograd.gradcheck(run, (x, *parameters))
    assert len(given) == 2 * (steps + 1 if steps else 0)


def test_no_gradient_through_what_is_compared():
    """Tokens of one kind do not move to be grouped; prior and sharpness learn to group them."""
    module = randomised(MaskModule(3, 2, 1))
    tokens = torch.randn(1, 1, 9, 4, requires_grad=True)
    _, _, back = module(tokens)
    (back * torch.randn(9, 4)).sum().backward()
    assert tokens.grad is None
    assert module.prior_offset.grad.abs().sum() > 0
    assert module.log_sharpness.grad.abs() > 0


def kinds(batch: int = 2) -> torch.Tensor:
    """Tokens of two kinds, each with a little noise, on both sides of slanted edges."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(35.0), indexing="ij")
    kind = torch.stack([((x + (k + 0.4) * y) / 6).floor() % 2 for k in range(batch)])
    colours = torch.randn(2, 16)
    return colours[kind.long()] + 0.1 * torch.randn(batch, 28, 35, 16)


def test_content_makes_the_way_back_right_where_kinds_meet():
    """What a token-wise layer changes, computed on slots: each step brings it nearer."""
    x, errors = kinds(), []
    layer = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    with torch.no_grad():
        wanted = x + layer(x)
        for steps in (0, 1, 2):
            merged = TokenMerger(7, 4, steps)(x)
            found = unmerge_grid(merged.slots + layer(merged.slots), merged)
            errors.append(float((found - wanted).norm() / (wanted - x).norm()))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]


def test_sharpness_starts_as_said_and_decays_back_to_it():
    mask = MaskModule(7, 5, sharpness=8.0)
    assert_close(mask.sharpness, torch.tensor(8.0))
    nn.init.constant_(mask.log_sharpness, 1.0)
    assert_close(mask.sharpness, torch.tensor(8.0 * torch.e))
    mask.log_sharpness.grad = torch.zeros(())
    torch.optim.AdamW(mask.parameters(), lr=0.1, weight_decay=1.0).step()
    assert_close(mask.sharpness, torch.tensor(8.0).mul(torch.tensor(0.9).exp()))
    assert not hasattr(MaskModule(7, 5, steps=0), "log_sharpness")


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype, for_convolution):
    module, x = TokenMerger(7, 5, 2, for_convolution), torch.randn(1, 9, 16, 16)
    with torch.autocast("cpu", dtype=dtype):
        merged = module(x * 100)
        restored = unmerge_grid(merged.slots * 1.5, merged)
    exact = module(x * 100)
    assert merged.slots.isfinite().all()
    for half, full in (
        (merged.slots, exact.slots),
        (merged.back, exact.back),
        (restored, unmerge_grid(exact.slots * 1.5, exact)),
    ):
        assert (half.float() - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize(
    ("window", "slots", "steps", "message"),
    [
        (7, 7, 1, "7 x 7 tokens into 7 x 7"),
        (7, 0, 1, "slots must lie in 1..6"),
        (7, 5, -1, "steps must be an integer >= 0, got -1"),
        (7, 5, 1.5, "got 1.5"),
    ],
)
def test_impossible_masks_are_refused(window, slots, steps, message):
    with pytest.raises(ValueError, match=message):
        MaskModule(window, slots, steps)

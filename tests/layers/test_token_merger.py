"""The laws of merging and unmerging (ltm: any grid, any plan)."""

import importlib

import pytest
import torch
from torch import nn
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
    slots: int = 5, steps: int = 1, dim: int = 16, window: int = 7, keep_norm: bool = False
) -> TokenMerger:
    return randomised(TokenMerger(dim, window, slots, steps, keep_norm))


both = pytest.mark.parametrize("keep_norm", [False, True])


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
def test_constant_map_stays_constant(height, width, steps, keep_norm):
    x = torch.randn(1, 1, 1, 16).expand(2, height, width, 16)
    merged = merger(steps=steps, keep_norm=keep_norm)(x)
    assert_close(merged.slots, x[:, :1, :1].expand_as(merged.slots))


@both
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_unchanged_slots_give_the_tokens_back_to_the_bit(height, width, keep_norm):
    x = torch.randn(2, height, width, 16)
    first = merger(keep_norm=keep_norm)(x)
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
    mask = MaskModule(16, 7, 5)
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
    slots = torch.empty(batch, -(-height * s // w), -(-width * s // w), dim)
    restored = torch.empty(batch, height, width, dim)
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
                logits = prior
                z = mask.norm(tokens) if mask.steps else tokens
                for _ in range(mask.steps):
                    start = logits.softmax(0).T @ z
                    step = start + mask.mlp(start)
                    logits = prior + mask.scale * z @ step.T / dim
                merged = logits.softmax(0).T @ tokens
                if module.keep_norm:
                    squares = logits.softmax(0).T @ tokens.square().sum(1)
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
def test_equals_a_loop_over_real_tokens(height, width, steps, keep_norm):
    """Padding therefore decides nothing: the loop never sees it."""
    module, x = merger(steps=steps, keep_norm=keep_norm), torch.randn(2, height, width, 16)
    with torch.no_grad():
        merged = module(x)
        slots, restored = slow_merge(module, x)
        assert_close(merged.slots, slots, rtol=1e-5, atol=1e-5)
        found = unmerge_grid(merged.slots + merged.slots.sin(), merged)
    assert_close(found, restored, rtol=1e-5, atol=1e-5)


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
    module = TokenMerger(16, 7, 5, steps=0, keep_norm=True)
    similar = 1 + 0.3 * torch.randn(1, 14, 14, 16)
    similar = 3 * similar / similar.norm(dim=-1, keepdim=True)
    assert_close(module(similar).slots.norm(dim=-1), torch.full((1, 10, 10), 3.0))
    columns = torch.ones(1, 14, 14, 16)
    columns[:, :, 1::2] = -1
    module.keep_norm = False
    means = module(columns).slots
    module.keep_norm = True
    assert_close(module(columns).slots, (2 * means).clamp(-1, 1))
    assert module(torch.zeros(1, 7, 7, 16)).slots.abs().max() == 0


@both
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_gradients_are_those_of_finite_differences(steps, keep_norm):
    module = randomised(TokenMerger(4, 3, 2, steps, keep_norm)).double()
    later = randomised(TokenMerger(4, 2, 1, steps)).double()
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    parameters = [*module.parameters(), *later.parameters()]

    def run(x, *_):
        first = module(x)
        second = later(first.slots.sin(), first.slot_mass())
        return unmerge_grid(unmerge_grid(second.slots.cos(), second), first)

    torch.autograd.gradcheck(run, (x, *parameters))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype, keep_norm):
    module, x = TokenMerger(16, 7, 5, 2, keep_norm), torch.randn(1, 9, 16, 16)
    with torch.autocast("cpu", dtype=dtype):
        merged = module(x * 100)
        restored = unmerge_grid(merged.slots * 1.5, merged)
    exact = module(x * 100)
    assert merged.slots.isfinite().all()
    assert_close(merged.slots.float() / 100, exact.slots / 100, rtol=0.05, atol=0.05)
    assert_close(
        restored.float() / 100, unmerge_grid(exact.slots * 1.5, exact) / 100, rtol=0.05, atol=0.05
    )


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
        MaskModule(8, window, slots, steps)

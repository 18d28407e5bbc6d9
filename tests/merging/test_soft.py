"""Soft masks of windows on a grid."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.merging.soft import Soft, prior_centers, triangular_prior
from ltm_mm.ops import pad_to_windows, real_tokens, to_windows


def windows_of(height, width, window, channels=6):
    """Windows of a random grid with their mass."""
    x = torch.randn(2, height, width, channels)
    mass = real_tokens(height, width, window, like=x)
    return to_windows(pad_to_windows(x, window), window), mass


@pytest.mark.parametrize("grid", [(14, 21), (23, 31), (7, 7), (8, 3), (1, 1)])
@pytest.mark.parametrize(("window", "keep"), [(7, 25), (7, 9), (8, 36), (4, 4)])
def test_laws_of_a_soft_mask(window, keep, grid):
    tokens, mass = windows_of(*grid, window)
    g, u, merged = Soft(window, keep, 8.0)(tokens, mass)
    assert g.shape == u.shape == (2, tokens.shape[1], window**2, keep)
    assert_close(u.sum(-1), torch.ones(u.shape[:-1]))
    assert (g * (1 - mass).unsqueeze(-1) == 0).all()  # padding has no weight
    assert g.isfinite().all()
    real = mass.sum(-1) > 0
    assert_close(g.sum(-2)[:, real[0]], torch.ones(2, int(real.sum()), keep), rtol=1e-4, atol=1e-4)
    assert_close(merged, g.mT @ tokens)


@pytest.mark.parametrize(("window", "keep"), [(7, 25), (7, 9), (8, 36)])
def test_they_start_at_the_prior_and_learn(window, keep):
    tokens, mass = windows_of(17, 23, window)
    module = Soft(window, keep, 64.0)
    centers = prior_centers(window, keep)
    assert_close(module.prior, triangular_prior(window, centers))
    mask = module(tokens.requires_grad_(), mass)
    (mask.merged.square().sum() + (mask.u * torch.rand_like(mask.u)).sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    # A step of a learner that knows weight decay leads back to the start.
    nn.init.constant_(module.log_scale, 1.0)
    assert_close((module.start_scale * module.log_scale.exp()).item(), 64 * torch.e)


@pytest.mark.parametrize(
    ("window", "keep", "shift"), [(7, 25, 0), (7, 9, 3), (7, 5, 3), (8, 37, 4)]
)
def test_centers_lie_apart_in_the_window(window, keep, shift):
    centers = prior_centers(window, keep, shift)
    assert centers.shape == (keep, 2)
    assert ((centers > 0) & (centers < window)).all()
    assert len({tuple(p) for p in centers.tolist()}) == keep


def test_a_square_number_of_centers_is_a_regular_grid():
    centers = prior_centers(7, 25).view(5, 5, 2)
    line = (torch.arange(5) + 0.5) * 7 / 5
    assert_close(centers[..., 0], line[:, None].expand(5, 5))
    assert_close(centers[..., 1], line[None, :].expand(5, 5))


def test_no_gradient_through_what_is_compared():
    tokens = torch.randn(1, 2, 9, 4, requires_grad=True)
    mask = Soft(3, 2, 64.0)(tokens, None)
    (mask.u * torch.randn(9, 2)).sum().backward()
    assert tokens.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(dtype):
    module, x = Soft(7, 25, 8.0), 100 * torch.randn(1, 3, 49, 16)
    exact = module(x, None)
    with torch.autocast("cpu", dtype=dtype):
        mask = module(x, None)
    for half, full in zip(mask, exact, strict=True):
        assert half.isfinite().all()
        assert (half.float() - full).norm() < 0.03 * full.norm()

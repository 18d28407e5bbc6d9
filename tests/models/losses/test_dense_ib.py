"""The running estimates: k-means, revival, save and load, options, mixed precision."""

import pytest
import torch
from torch.testing import assert_close

import ltm_mm  # noqa: F401  before mmengine's registries look it up
from ltm_mm.models.losses import DenseIBLoss
from ltm_mm.models.losses.information import (
    mutual_information,
    normalise,
    paper_bound,
    soft_assignment,
    squared_distances,
    variational_bound,
)
from ltm_mm.registry import MODELS


def blobs(n: int = 400, groups: int = 8, dim: int = 16, seed: int = 0) -> tuple:
    """Tokens in well separated groups; two groups to a class."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=torch.Generator().manual_seed(99)) * 3
    group = torch.randint(groups, (n,), generator=g)
    return centres[group] + 0.3 * torch.randn(n, dim, generator=g), group // 2, centres


def make(**changes: object) -> DenseIBLoss:
    options = {"dim": 16, "num_classes": 4, "centroids": 8, **changes}
    return MODELS.build({"type": "ltm_mm.DenseIBLoss", **options})


def test_first_batch_finds_the_groups() -> None:
    tokens, labels, centres = blobs()
    loss = make(centroids=12)
    loss(tokens, labels)
    off = squared_distances(normalise(centres), loss.centroids).amin(1)
    assert off.max() < 0.01  # tokens have length 1
    assert loss.share.sum() == pytest.approx(1)


def test_estimates_are_those_of_the_batches() -> None:
    """With decay 0 everything is the last batch's."""
    loss = make(decay=0.0)
    tokens, labels, _ = blobs()
    loss(tokens, labels)
    x, labels, _ = blobs(seed=1)
    p = loss.assign(x)
    nearest = squared_distances(normalise(x), loss.centroids).argmin(1)
    means = torch.stack([normalise(x)[nearest == a].mean(0) for a in range(8)])
    value = loss(x, labels)
    joint = torch.stack([p[labels == y].sum(0) for y in range(4)]) / len(p)
    assert_close(loss.joint, joint)
    assert_close(loss.centroids, means)
    assert_close(loss.share, nearest.bincount(minlength=8) / len(p))
    given = (joint + 1e-6 / 8) / (joint + 1e-6 / 8).sum(1, keepdim=True)
    assert_close(value, paper_bound(p, p, given, labels).mean())


@pytest.mark.parametrize("common", [0.0, 30.0])
def test_assignment_is_relative_to_how_far_tokens_spread(common: float) -> None:
    """What all tokens share makes them neither softer nor harder to tell apart."""
    tokens, labels, _ = blobs()
    tokens = tokens + common * torch.linspace(-1, 1, 16)
    loss = make()
    loss(tokens, labels)
    x = normalise(tokens)
    spread = squared_distances(x, x.mean(0, keepdim=True)).mean()
    assert_close(loss.spread(), spread, rtol=0.15, atol=0)
    found = soft_assignment(x, loss.centroids, 0.1 * loss.spread())
    assert_close(loss.assign(tokens), found, rtol=1e-4, atol=1e-6)
    assert loss.assign(tokens).amax(1).mean() > 0.6


def test_running_means_average_evenly_at_first() -> None:
    loss = make(decay=0.99)
    seen = []
    for seed in range(3):
        tokens, labels, _ = blobs(seed=seed)
        if seed:
            seen.append(loss.assign(tokens))
        loss(tokens, labels)
        if not seed:
            first = loss.joint.clone()
    marginals = [first.sum(0), *(p.mean(0) for p in seen)]
    assert_close(loss.joint.sum(0), torch.stack(marginals).mean(0))


def test_dead_centroids_come_back() -> None:
    loss = make(decay=0.5, centroids=12)
    loss(*blobs()[:2])
    loss.centroids[3:9] = 10.0  # no token is near these
    for seed in range(1, 40):
        tokens, labels, _ = blobs(seed=seed)
        loss(tokens, labels)
    assert loss.share.min() > 0.05 / 12
    off = squared_distances(loss.centroids, normalise(tokens)).amin(1)
    assert off.max() < 0.05


def test_a_revived_centroid_shares_what_the_fullest_had() -> None:
    loss = make(centroids=3)
    loss.centroids.copy_(torch.eye(3, 16))
    loss.share.copy_(torch.tensor([0.7, 0.3, 0.0]))
    loss.joint.copy_(torch.tensor([[0.6, 0.1, 0.0], [0.1, 0.2, 0.0]] + 2 * [[0.0] * 3]))
    loss._revive()
    assert_close(loss.share, torch.tensor([0.35, 0.3, 0.35]))
    assert_close(loss.joint[:2], torch.tensor([[0.3, 0.1, 0.3], [0.05, 0.2, 0.05]]))
    assert 0 < squared_distances(loss.centroids[2:], loss.centroids[:1]) < 0.05
    before = loss.centroids.clone()
    loss._revive()
    assert_close(loss.centroids, before, rtol=0, atol=0)


def test_ignored_tokens_change_nothing() -> None:
    tokens, labels, _ = blobs()
    noise, unlabelled = torch.randn(50, 16), torch.full((50,), -1)
    one, other = make(), make()
    values = [
        one(tokens, labels),
        other(torch.cat([tokens, noise]), torch.cat([labels, unlabelled])),
    ]
    assert_close(values[0], values[1])
    assert_close(one.state_dict(), other.state_dict())
    before = {k: v.clone() for k, v in one.named_buffers()}
    assert one(noise, unlabelled) == 0
    assert_close(dict(one.named_buffers()), before)


def test_an_overflow_does_not_stay() -> None:
    tokens, labels, _ = blobs()
    loss = make()
    loss(tokens, labels)
    before = {k: v.clone() for k, v in loss.named_buffers()}
    loss(tokens * float("inf"), labels)
    assert_close(dict(loss.named_buffers()), before)


@pytest.mark.parametrize("bound", ["paper", "variational"])
def test_save_and_load_go_on_alike(bound: str) -> None:
    one = make(bound=bound)
    for seed in range(3):
        one(*blobs(seed=seed)[:2])
    other = make(bound=bound)
    other.load_state_dict(one.state_dict())
    values = [loss(*blobs(seed=3)[:2]) for loss in (one, other)]
    assert_close(values[0], values[1], rtol=0, atol=0)
    assert one.steps == other.steps == 4
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_eval_updates_nothing() -> None:
    loss = make()
    loss(*blobs()[:2])
    before = {k: v.clone() for k, v in loss.state_dict().items() if isinstance(v, torch.Tensor)}
    loss.eval()(*blobs(seed=1)[:2])
    assert_close({k: loss.state_dict()[k] for k in before}, before, rtol=0, atol=0)
    assert loss.steps == 1


@pytest.mark.parametrize("bound", ["paper", "variational"])
def test_gradient_reaches_the_tokens_and_training_on_it_helps(bound: str) -> None:
    """The tokens alone, moved along the gradient: clusters say more about the classes."""
    torch.manual_seed(0)
    tokens = torch.randn(200, 16).requires_grad_()
    labels = torch.arange(200) % 4
    loss = make(bound=bound)
    optimizer = torch.optim.SGD([tokens], lr=20.0)
    about_class = []
    for _ in range(60):
        optimizer.zero_grad()
        loss(tokens, labels).backward()
        assert tokens.grad.abs().sum(1).min() > 0
        optimizer.step()
        about_class.append(float(mutual_information(loss.joint)))
    assert about_class[-1] > 3 * about_class[0]


def test_bounds_and_options_differ() -> None:
    tokens, labels, _ = blobs()
    base = make()(tokens, labels)
    for change in ({"bound": "variational"}, {"temperature": 0.5}, {"centroids": 5}):
        assert not torch.isclose(make(**change)(tokens, labels), base), change
    betas = [make(bound="variational", beta=b)(tokens, labels) for b in (1.0, 2.0)]
    assert betas[1] < betas[0]


def test_variational_value() -> None:
    tokens, labels, _ = blobs()
    loss = make(bound="variational", beta=1.5)
    loss(tokens, labels)
    loss.eval()
    p = loss.assign(tokens)
    found = variational_bound(p, loss.marginal(), loss.given_class(), labels, 1.5).mean()
    assert_close(loss(tokens, labels), found)


def test_inputs_shift_the_paper_bound_by_a_constant() -> None:
    tokens, labels, _ = blobs()
    inputs = torch.randn(len(tokens), 16)
    values, gradients = [], []
    for given in (None, inputs):
        x = tokens.clone().requires_grad_()
        values.append(make()(x, labels, given))
        values[-1].backward()
        gradients.append(x.grad)
    assert not torch.isclose(values[0], values[1])
    assert_close(gradients[0], gradients[1])


def test_mixed_precision_is_computed_in_full() -> None:
    tokens, labels, _ = blobs()
    tokens = tokens.bfloat16()
    plain = make()(tokens, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make()(tokens, labels)
    assert mixed.dtype == torch.float32
    assert_close(mixed, plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bound": "tight"},
        {"centroids": 0},
        {"temperature": 0.0},
        {"decay": 1.0},
        {"beta": -1.0},
        {"num_classes": 0},
    ],
)
def test_wrong_options(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name} must .*got"):
        make(**wrong)

"""The bounds against exact mutual information, by hand, and their gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from ltm_mm.models.losses.information import (
    mutual_information,
    normalise,
    paper_bound,
    soft_assignment,
    variational_bound,
)

DOUBLE = torch.float64


class Toy:
    """A discrete world: n equally likely inputs, their clusters p and q, their classes."""

    def __init__(self, seed: int, n: int = 30, a: int = 5, b: int = 6, k: int = 3) -> None:
        g = torch.Generator().manual_seed(seed)

        def rows(m: int, sharpness: float) -> torch.Tensor:
            return (torch.randn(n, m, generator=g, dtype=DOUBLE) * sharpness).softmax(-1)

        self.p, self.q = rows(a, 2.0), rows(b, 2.0)
        self.labels = torch.randint(k, (n,), generator=g)
        self.labels[:k] = torch.arange(k)  # every class occurs
        one_hot = torch.nn.functional.one_hot(self.labels, k).to(DOUBLE)
        self.with_class = one_hot.t() @ self.p / n  # P(y, a)
        self.with_input = self.p.t() @ self.q / n  # P(a, b)
        self.given_class = self.with_class / self.with_class.sum(1, keepdim=True)
        self.marginal = self.p.mean(0)
        self.other = rows(a, 1.0)[:k]  # some wrong estimate of Q

    def information(self) -> tuple[torch.Tensor, torch.Tensor]:
        """I(A;X) and I(A;Y), each input being one value of X."""
        return mutual_information(self.p / len(self.p)), mutual_information(self.with_class)

    def entropy_of_inputs(self) -> torch.Tensor:
        share = self.q.mean(0)
        return -(share * share.log()).sum()


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def slow_information(joint: torch.Tensor) -> float:
    rows, cols = joint.sum(1), joint.sum(0)
    return sum(
        float(joint[i, j]) * math.log(joint[i, j] / (rows[i] * cols[j]))
        for i in range(len(rows))
        for j in range(len(cols))
        if joint[i, j] > 0
    )


def test_mutual_information() -> None:
    joint = Toy(0).with_class
    assert float(mutual_information(joint)) == pytest.approx(slow_information(joint))
    assert_close(mutual_information(torch.eye(4) / 4), torch.tensor(math.log(4)))
    assert_close(mutual_information(torch.full((3, 2), 1 / 6)), torch.tensor(0.0))


def test_soft_assignment_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    centroids = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    logits = torch.tensor([[0.0, -20.0], [-4.0, -8.0]])  # -distance^2 / 0.5
    assert_close(soft_assignment(x, centroids, 0.5), logits.softmax(-1))


def test_normalised_tokens_have_length_one() -> None:
    x = normalise(torch.randn(9, 64) * 5 + 3)
    assert_close(x.sum(-1), torch.zeros(9), atol=1e-5, rtol=0)
    assert_close((x * x).sum(-1), torch.ones(9), atol=1e-4, rtol=0)


def test_paper_bound_by_hand() -> None:
    """Two tokens of classes 0 and 1; written out with paper and pencil."""
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    given_class = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    first = 0.5 * math.log(0.5) * 2 + 0.75 * math.log(2) + 0.25 * math.log(2)  # = 0
    second = 0.0 - (0.5 * math.log(0.25) + 0.5 * math.log(0.75))  # = 0.836988...
    bound = paper_bound(p, q, given_class, torch.tensor([0, 1]))
    assert_close(bound, torch.tensor([first, second]))
    assert_close(bound, torch.tensor([0.0, 0.8369882]))


def test_first_term_of_the_paper_bound_is_constant() -> None:
    """Whatever p is, it adds the same; and it passes no gradient to the logits of p."""
    toy = Toy(2)
    certain = torch.ones_like(toy.given_class)  # log Q = 0: the second term is gone
    values = [paper_bound(p, toy.q, certain, toy.labels) for p in (toy.p, Toy(3).p)]
    assert_close(values[0], values[1])
    assert_close(values[0], torch.xlogy(toy.q, toy.q).sum(-1))
    logits = torch.randn(30, 5, dtype=DOUBLE, requires_grad=True)
    paper_bound(logits.softmax(-1), toy.q, certain, toy.labels).sum().backward()
    assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_paper_bound_is_above_the_exact_bottleneck(seed: int) -> None:
    toy = Toy(seed)
    exact = mutual_information(toy.with_input) - mutual_information(toy.with_class)
    for given_class in (toy.given_class, toy.other):
        bound = paper_bound(toy.p, toy.q, given_class, toy.labels).mean()
        assert bound + toy.entropy_of_inputs() >= exact
    best = paper_bound(toy.p, toy.q, toy.given_class, toy.labels).mean()
    assert best < bound  # the true Q gives the tightest one


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_variational_bound_is_exact_with_exact_estimates(beta: float) -> None:
    toy = Toy(4)
    about_x, about_y = toy.information()
    found = variational_bound(toy.p, toy.marginal, toy.given_class, toy.labels, beta).mean()
    assert_close(found, about_x - beta * about_y)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_variational_gap_is_what_the_docstring_says(beta: float) -> None:
    toy = Toy(5)
    marginal = Toy(6).marginal
    about_x, about_y = toy.information()
    found = variational_bound(toy.p, marginal, toy.other, toy.labels, beta).mean()
    off = (toy.with_class.sum(1) * kl(toy.given_class, toy.other)).sum()
    gap = beta * off + (1 - beta) * kl(toy.marginal, marginal)
    assert_close(found, about_x - beta * about_y + gap)
    if beta <= 1:
        assert gap >= 0


def test_variational_bound_prefers_classes_only_above_one() -> None:
    """Clusters that equal two even classes, against one cluster for all."""
    labels = torch.tensor([0, 1])
    split = variational_bound(
        torch.eye(2), torch.full((2,), 0.5), torch.eye(2).clamp(min=1e-30), labels, 2.0
    )
    assert_close(split.mean(), torch.tensor(-math.log(2)))


BOUNDS = {
    "paper": lambda p, toy: paper_bound(p, toy.q, toy.other, toy.labels),
    "variational": lambda p, toy: variational_bound(p, toy.marginal, toy.other, toy.labels, 1.5),
}


def bound_of_tokens(name: str, tokens: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return BOUNDS[name](soft_assignment(normalise(tokens), centroids, 0.3), Toy(7)).mean()


@pytest.mark.parametrize("name", BOUNDS)
def test_gradients_by_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(30, 8, dtype=DOUBLE, requires_grad=True)
    centroids = normalise(torch.randn(5, 8, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda x: bound_of_tokens(name, x, centroids), (tokens,))


@pytest.mark.parametrize("name", BOUNDS)
def test_gradients_are_finite_where_an_assignment_is_certain(name: str) -> None:
    logits = torch.full((30, 5), -1e4)
    logits[:, 0] = 0
    logits.requires_grad_()
    toy = Toy(7)
    BOUNDS[name](logits.softmax(-1), toy).mean().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", BOUNDS)
def test_closed_form_gradient_of_the_mask(name: str) -> None:
    """dIBB/dG = Z (dIBB/dX~)^T, and one small step along it lowers the bound."""
    torch.manual_seed(1)
    z = torch.randn(3, 2, 9, 8, dtype=DOUBLE)  # (B, n, N, C): 6 windows of 9 tokens
    mask = torch.randn(3, 2, 9, 5, dtype=DOUBLE).softmax(-2).requires_grad_()
    centroids = normalise(torch.randn(5, 8, dtype=DOUBLE))
    merged = mask.mT @ z  # X~ (3, 2, 5, 8): 30 tokens
    merged.retain_grad()
    before = bound_of_tokens(name, merged.reshape(30, 8), centroids)
    before.backward()
    closed = z @ merged.grad.mT  # (B, n, N, P)
    assert_close(mask.grad, closed)
    stepped = (mask.detach() - 1e-3 * closed).mT @ z
    after = bound_of_tokens(name, stepped.reshape(30, 8), centroids)
    assert after < before.detach()
    assert_close(before.detach() - after, 1e-3 * (closed**2).sum(), rtol=0.05, atol=0)

"""The dense information-bottleneck loss and the running estimates that it needs (ours)."""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from .information import (
    normalise,
    paper_bound,
    soft_assignment,
    squared_distances,
    variational_bound,
)

BOUNDS = ("paper", "variational")
FLOOR = 1e-6  # share of all tokens that is spread evenly over the clusters of every class


class DenseIBLoss(nn.Module):
    """Information-bottleneck bound of merged tokens, with its estimates as buffers.

    Clusters of merged tokens are found by k-means while training runs: each call moves the
    centroids a little towards the tokens of its batch (a running mean), and updates how
    clusters and classes occur together. Nothing goes over the data twice. The first call
    grows the centroids by splitting. A centroid that hardly any token chooses is put
    beside the one that most choose.

    All estimates come from sums that are added up over the ranks, so they are those of
    one process with the whole batch. In eval mode nothing is updated. It has no
    parameters: the gradient goes to the tokens.

    Args:
        dim: channels of the tokens (C).
        num_classes: classes, background included (K).
        bound: 'paper' or 'variational', see :mod:`.information`.
        centroids: clusters (A).
        temperature: of the soft assignment, as a share of the tokens' mean squared distance
            to their mean: tokens of a layer have much in common, and what differs counts.
        beta: weight of I(A;Y) in the variational bound.
        decay: of the running means, 0..1; the first calls average evenly.

    Raises:
        ValueError: if an argument is out of range.
    """

    centroids: Tensor
    share: Tensor
    joint: Tensor

    def __init__(
        self,
        dim: int,
        num_classes: int,
        bound: str = "paper",
        centroids: int = 64,
        temperature: float = 0.1,
        beta: float = 2.0,
        decay: float = 0.98,
    ) -> None:
        super().__init__()
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
        for name, value in (("dim", dim), ("num_classes", num_classes), ("centroids", centroids)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature!r}")
        if not beta >= 0:
            raise ValueError(f"beta must be >= 0, got {beta!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0..1 (1 excluded), got {decay!r}")
        self.bound, self.temperature, self.beta, self.decay = bound, temperature, beta, decay
        self.steps = 0
        self.register_buffer("centroids", torch.zeros(centroids, dim))
        # Share of the tokens that are nearest to each centroid.
        self.register_buffer("share", torch.full((centroids,), 1 / centroids))
        # Share of the tokens that are in a class and, softly, in a cluster.
        self.register_buffer("joint", torch.zeros(num_classes, centroids))

    def get_extra_state(self) -> int:
        """Calls so far; part of the state dict."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Take over the number of calls."""
        self.steps = state

    def given_class(self) -> Tensor:
        """Q(a|y) ``(K, A)``: even where a class has not been seen yet."""
        joint = self.joint + FLOOR / self.joint.shape[1]
        return joint / joint.sum(1, keepdim=True)

    def marginal(self) -> Tensor:
        """r ``(A,)``: how often the clusters occur."""
        marginal = self.joint.sum(0) + FLOOR / self.joint.shape[1]
        return marginal / marginal.sum()

    def assign(self, tokens: Tensor) -> Tensor:
        """Soft assignment p ``(n, A)`` of tokens ``(n, C)`` to the clusters as they are now."""
        # A copy, because the estimates move before the gradient is taken.
        centroids, temperature = self.centroids.clone(), self.temperature * self.spread()
        return soft_assignment(normalise(tokens.float()), centroids, temperature)

    def spread(self) -> Tensor:
        """Mean squared distance of the tokens to their mean, a scalar."""
        mean = self.share @ self.centroids
        return (1 - mean @ mean).clamp(min=1e-6)  # normalised tokens have length 1

    def forward(self, tokens: Tensor, labels: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The bound's mean over the labelled tokens of all ranks, as this rank's part.

        Args:
            tokens: merged tokens ``(n, C)``.
            labels: their classes ``(n,)`` int64; negative: left out.
            inputs: what was merged into each ``(n, C)``; it shifts the paper's bound by a
                constant and has no gradient. None: the tokens themselves.

        Returns:
            A scalar in nats; the ranks' mean is the bound of the whole batch.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            x = normalise(tokens.detach().float())
            weight = (labels >= 0).to(x.dtype)
            labels = labels.clamp(min=0)
            if self.training and not self.steps:
                self._start(x, weight)
            p = self.assign(tokens)
            q = p.detach() if inputs is None else self.assign(inputs.detach())
            count = self._observe(x, p.detach(), weight, labels)
            given_class = self.given_class()
            if self.bound == "variational":
                values = variational_bound(p, self.marginal(), given_class, labels, self.beta)
            else:
                values = paper_bound(p, q, given_class, labels)
            return (values * weight).sum() * get_world_size() / count.clamp(min=1)

    @torch.no_grad()
    def _observe(self, x: Tensor, p: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Update the estimates with a batch; returns its number of tokens on all ranks."""
        if not self.training:
            return all_reduce_(weight.sum())
        num_classes = self.joint.shape[0]
        classes = F.one_hot(labels, num_classes).to(x.dtype) * weight.unsqueeze(1)
        joint, (chosen, sums) = classes.t() @ p, self._nearest(x, weight)
        # One message for all: it is the number of messages that costs.
        parts = [weight.sum().view(1), joint.flatten(), chosen, sums.flatten()]
        count, joint, chosen, sums = all_reduce_(torch.cat(parts)).split([t.numel() for t in parts])
        pace = max(1 - self.decay, 1 / (self.steps + 1))
        # An overflow in a batch (mixed precision), or no token at all, must not stay.
        usable = (count > 0).all() & joint.isfinite().all() & sums.isfinite().all()
        rate = torch.where(usable, pace, 0.0)
        total = count.clamp(min=1)
        joint = torch.where(usable, joint / total, 0).view_as(self.joint)
        self.joint.lerp_(joint, rate)
        chosen = torch.where(usable, chosen / total, 0)
        sums = torch.where(usable, sums / total, 0).view_as(self.centroids)
        self._move(chosen, sums, rate)
        self._revive()
        self.steps += 1
        return count.squeeze(0)

    def _nearest(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens are nearest to each centroid ``(A,)``, and their sum ``(A, C)``."""
        nearest = squared_distances(x, self.centroids).argmin(1)
        hard = F.one_hot(nearest, len(self.centroids)).to(x.dtype) * weight.unsqueeze(1)
        return hard.sum(0), hard.t() @ x

    def _move(self, chosen: Tensor, sums: Tensor, rate: Tensor) -> None:
        """Running means of the shares and of the tokens in each cluster."""
        mass = self.share.unsqueeze(1) * (1 - rate) * self.centroids + rate * sums
        self.share.lerp_(chosen, rate)
        share = self.share.unsqueeze(1)
        moved = mass / share.clamp(min=1e-12)
        self.centroids.copy_(torch.where(share > 1e-9, moved, self.centroids))

    def _revive(self, least: float = 0.05) -> None:
        """Put a centroid with less than ``least`` of an even share beside the fullest one.

        It depends on the state alone, so all ranks do the same without a message.
        """
        lightest, fullest = self.share.argmin(), self.share.argmax()
        dead = self.share[lightest] < least / len(self.share)
        new = self.centroids[fullest] + self._noise(self.centroids[fullest], self.steps)
        self.centroids[lightest] = torch.where(dead, new, self.centroids[lightest])
        for mass in (self.share, self.joint.t()):  # views: the buffers change
            half = torch.where(dead, mass[fullest] / 2, 0)
            mass[lightest] += half
            mass[fullest] -= half

    @torch.no_grad()
    def _start(self, x: Tensor, weight: Tensor, rounds: int = 4) -> None:
        """Grow the centroids on the first batch: split all in two, k-means, again."""
        count = len(self.centroids)
        self.centroids.copy_(self._mean_of(x, weight).expand_as(self.centroids))
        grown = 1
        while grown < count:
            more = min(grown, count - grown)
            fullest = self.share[:grown].argsort(descending=True, stable=True)[:more]
            split = self.centroids[fullest]
            self.centroids[grown : grown + more] = split + self._noise(split, grown)
            grown += more
            for _ in range(rounds):
                self._lloyd(x, weight, grown)

    def _lloyd(self, x: Tensor, weight: Tensor, grown: int) -> None:
        """One step of k-means with the first ``grown`` centroids; empty ones stay."""
        nearest = squared_distances(x, self.centroids[:grown]).argmin(1)
        hard = F.one_hot(nearest, len(self.centroids)).to(x.dtype) * weight.unsqueeze(1)
        stats = all_reduce_(torch.cat([hard.sum(0).unsqueeze(1), hard.t() @ x], 1))
        chosen, sums = stats[:, :1], stats[:, 1:]
        moved = (chosen > 0) & sums.isfinite().all()
        self.centroids.copy_(torch.where(moved, sums / chosen.clamp(min=1), self.centroids))
        self.share.copy_((chosen / chosen.sum().clamp(min=1)).squeeze(1))

    def _noise(self, like: Tensor, seed: int, size: float = 0.1) -> Tensor:
        """Small differences on the scale of the tokens' spread, the same on all ranks."""
        draw = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
        return draw * size * (self.spread() / like.shape[-1]).sqrt()

    @staticmethod
    def _mean_of(x: Tensor, weight: Tensor) -> Tensor:
        total = all_reduce_(torch.cat([weight.sum().view(1), weight @ x]))
        return total[1:] / total[0].clamp(min=1)


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum over the ranks; the tensor itself without any."""
    all_reduce(tensor, "sum")
    return tensor

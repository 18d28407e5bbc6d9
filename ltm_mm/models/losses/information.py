"""Bounds on the information bottleneck, and the plug-in information itself.

Source: soft assignment to centroids and the ``paper`` bound follow Wang & Yang
(arXiv 2407.15219, section 3), with merged tokens as samples in the place of images (ours);
the ``variational`` bound is ours. All information is in nats.

Letters: n tokens, C channels, A centroids, K classes. For token i: p_i(a) is the probability
that its merged token lies in cluster a, q_i(b) the same for what went into the merge.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(tokens: Tensor) -> Tensor:
    """Zero mean over the channels and length 1, so that one temperature fits every layer.

    Args:
        tokens: ``(..., C)``.

    Returns:
        ``(..., C)``.
    """
    return F.layer_norm(tokens, tokens.shape[-1:]) / math.sqrt(tokens.shape[-1])


def squared_distances(x: Tensor, centroids: Tensor) -> Tensor:
    """``||x_i - c_a||^2``, ``(n, A)``, from ``(n, C)`` and ``(A, C)``."""
    # What all have in common would cost digits.
    common = centroids.mean(0)
    x, centroids = x - common, centroids - common
    squares = (x * x).sum(-1, keepdim=True) + (centroids * centroids).sum(-1)
    return torch.addmm(squares, x, centroids.t(), alpha=-2)


def soft_assignment(x: Tensor, centroids: Tensor, temperature: float | Tensor) -> Tensor:
    """``p_i = softmax_a(-||x_i - c_a||^2 / temperature)``.

    Args:
        x: normalised tokens ``(n, C)``.
        centroids: ``(A, C)``.
        temperature: > 0; the smaller, the harder the assignment.

    Returns:
        ``(n, A)``, rows sum to 1.
    """
    return (-squared_distances(x, centroids) / temperature).softmax(-1)


def paper_bound(p: Tensor, q: Tensor, given_class: Tensor, labels: Tensor) -> Tensor:
    """The paper's bound, one value per token; its mean is the loss.

    ``sum_ab p_i(a) q_i(b) log q_i(b) - sum_a p_i(a) log Q(a|y_i)``. Because p_i sums to
    one, the first term is ``sum_b q_i(b) log q_i(b)``: constant in p, so with a q that
    takes no gradient only the second term trains. With Q = P(a|y) the mean plus H(B) is
    at least I(A;B) - I(A;Y).

    Args:
        p: assignment of the merged tokens ``(n, A)``.
        q: assignment of the input tokens ``(n, B)``.
        given_class: Q(a|y) ``(K, A)``, positive, rows sum to 1.
        labels: class y of every token ``(n,)`` int64 in 0..K-1.

    Returns:
        ``(n,)``, in nats.
    """
    constant = torch.xlogy(q, q).sum(-1) * p.sum(-1)
    return constant - (p * given_class.log()[labels]).sum(-1)


def variational_bound(
    p: Tensor, marginal: Tensor, given_class: Tensor, labels: Tensor, beta: float
) -> Tensor:
    """A bound of I(A;X) - beta * I(A;Y) that both terms train (ours), one value per token.

    ``KL(p_i || r) - beta * sum_a p_i(a) log(Q(a|y_i) / r(a))``. The mean exceeds
    I(A;X) - beta * I(A;Y) by ``beta * E_y KL(P(a|y) || Q) + (1 - beta) * KL(P(a) || r)``:
    nothing where the estimates are exact.

    Args:
        p: assignment of the merged tokens ``(n, A)``.
        marginal: r ``(A,)``, positive, sums to 1.
        given_class: Q(a|y) ``(K, A)``, positive, rows sum to 1.
        labels: class y of every token ``(n,)`` int64 in 0..K-1.
        beta: weight of what the clusters say about the class. At 1, one cluster for all is
            as good as clusters that equal the classes; above 1 the latter are better.

    Returns:
        ``(n,)``, in nats.
    """
    log_r = marginal.log()
    log_q = given_class.log()[labels]
    log_p = p.clamp(min=1e-30).log()  # finite, and its gradient too, where p is 0
    return (p * (log_p - log_r - beta * (log_q - log_r))).sum(-1)


def mutual_information(joint: Tensor) -> Tensor:
    """Exact mutual information of two discrete variables, in nats.

    Args:
        joint: ``(M, N)``, not negative, sums to 1.

    Returns:
        A scalar, >= 0 up to rounding.
    """
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum()

"""The information bottleneck of tokens that were not trained on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.losses import DenseIBLoss
from ..models.losses.dense_ib import all_reduce_
from ..models.losses.information import mutual_information


@torch.no_grad()
def held_out_information(
    tokens: Tensor,
    labels: Tensor,
    num_classes: int,
    centroids: int = 64,
    temperature: float = 0.1,
    rounds: int = 20,
) -> dict[str, float]:
    """I(A;X) and I(A;Y) of tokens, with clusters found on every second of them.

    The clusters are found anew by k-means, so that models trained with and without the
    loss are measured alike. Tokens may be spread over the ranks; all get the same result.

    Args:
        tokens: ``(n, C)``.
        labels: ``(n,)`` int64 in 0..num_classes-1.
        num_classes: K.
        centroids, temperature: as in :class:`ltm_mm.models.losses.DenseIBLoss`.
        rounds: of k-means.

    Returns:
        ``I_AX``, ``I_AY`` and ``IB``, their difference, in nats.
    """
    clusters = DenseIBLoss(
        tokens.shape[1], num_classes, centroids=centroids, temperature=temperature, decay=0.0
    ).to(tokens.device)
    for _ in range(rounds):
        clusters(tokens[::2], labels[::2])
    p = clusters.assign(tokens[1::2])
    joint = F.one_hot(labels[1::2], num_classes).to(p).t() @ p  # (K, A)
    certainty = torch.xlogy(p, p).sum()
    *_, count = sums = all_reduce_(
        torch.cat([joint.flatten(), certainty.view(1), certainty.new_tensor([len(p)])]).double()
    )
    joint = sums[:-2].view(joint.shape) / count
    marginal = joint.sum(0)
    about_x = sums[-2] / count - torch.xlogy(marginal, marginal).sum()
    about_y = mutual_information(joint)
    return {"I_AX": float(about_x), "I_AY": float(about_y), "IB": float(about_x - about_y)}

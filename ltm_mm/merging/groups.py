"""Groups: which tokens are merged, and which update each token gets.

Source: ``X~ = G^T Z`` with columns of G that sum to 1 is the paper's (arXiv 2407.15219, section 3);
the unmerge mask U and residual unmerging are ours.

Letters: N tokens and P merged tokens per set (a window, or a whole image), C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import packed, sum_groups, take_groups
from .matching import Matched


@dataclass
class Groups:
    """Hard groups: the rows of U are one-hot.

    Attributes:
        group_index: group of each token ``(..., N)`` int64.
        roots: the token whose position each group takes ``(..., P)`` int64.
        sizes: number of tokens that each group's key counts for ``(..., P)``.
        mass: 1 for a token, 0 for padding, ``(..., N)``; None: no padding. In ViT, how many
            patches each token stands for.
        merged: X~ ``(..., P, C)`` of the tokens that the groups were made from, if already known
            and no gradient is needed.
        lengths: Euclidean norm of each token ``(..., N)``, if already known and no gradient is
            needed.
    """

    group_index: Tensor
    roots: Tensor
    sizes: Tensor
    mass: Tensor | None = None
    merged: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def count(self) -> int:
        """Merged tokens per set (P)."""
        return self.roots.shape[-1]

    def merge(self, tokens: Tensor) -> Tensor:
        """X~ = G^T Z: each group's mean ``(..., P, C)`` of tokens ``(..., N, C)``."""
        if self.mass is None:
            total = self.sizes.unsqueeze(-1).to(tokens.dtype)
            return sum_groups(tokens, self.group_index, self.count) / total
        mass = packed(self.mass.expand(self.group_index.shape)).unsqueeze(-1).to(tokens.dtype)
        total = sum_groups(mass, self.group_index, self.count).clamp(min=1e-6)
        return sum_groups(tokens * mass, self.group_index, self.count) / total

    def merge_own(self, tokens: Tensor) -> Tensor:
        """X~ of the tokens that the groups were made from, computed once."""
        return self.merge(tokens) if self.merged is None else self.merged

    def unmerge(self, update: Tensor) -> Tensor:
        """U times an update of the groups: ``(..., P, C)`` -> ``(..., N, C)``."""
        return take_groups(update, self.group_index)

    def masses(self) -> Tensor:
        """Total mass of each group's tokens ``(..., P)``; 0 for a group of padding only."""
        if self.mass is None:
            return self.sizes
        mass = packed(self.mass.expand(self.group_index.shape)).unsqueeze(-1)
        return sum_groups(mass, self.group_index, self.count).squeeze(-1)

    def share(self, amounts: Tensor) -> Tensor:
        """U^T times amounts per token ``(..., N, K)``, e.g. pixels of a class: ``(..., P, K)``."""
        return sum_groups(amounts, self.group_index, self.count)

    def masks(self) -> tuple[Tensor, Tensor]:
        """G and U ``(..., N, P)``, for pictures and tests."""
        groups = torch.arange(self.count, device=self.group_index.device)
        u = (self.group_index.unsqueeze(-1) == groups).float()
        g = u if self.mass is None else u * self.mass.float().unsqueeze(-1)
        return g / g.sum(-2, keepdim=True).clamp(min=1e-6), u

    @classmethod
    def of(cls, matched: Matched, mass: Tensor | None, dtype: torch.dtype) -> "Groups":
        """Groups from matching, with their means if the sums are known.

        Args:
            matched: result of :func:`.matching.match`.
            mass: as above.
            dtype: of the tokens.
        """
        groups = cls(matched.group_index, matched.roots, matched.sizes, mass)
        if matched.sums is not None:
            total = groups.masses().clamp(min=1e-6).unsqueeze(-1)
            groups.merged = (matched.sums / total).to(dtype)
            groups.lengths = matched.lengths
        return groups

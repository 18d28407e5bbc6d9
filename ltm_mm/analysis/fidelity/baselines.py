"""What merging is measured beside: area pooling of the same tokens, and ToMe.

Source: ToMe is Bolya et al., ICLR 2023, arXiv 2210.09461; the code here is our own (theirs is
CC-BY-NC), and the residual unmerging after it is ours.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...kernels import run_linear
from ...merging import ChainMerge, Groups, MaskModule
from ...merging.grid import GridMerger
from ...merging.masks import PADDING_PENALTY, REGION_PENALTY, WindowMask
from ...merging.soft import SoftGroups, prior_centers
from ...models.backbones.global_blocks import Chain, GlobalBlock, GlobalBlocks
from ...ops import sum_groups, window_regions

GridSize = tuple[int, int]


def pooled(model: nn.Module) -> nn.Module:
    """Replace the mask modules of a merging model by area pooling, in place.

    Args:
        model: with merged blocks of any family.

    Returns:
        The model itself: as many merged tokens as before, grouped by position.
    """
    for module in list(model.modules()):
        if isinstance(module, GridMerger):
            grid_pool = GridPool(module.window, module.side**2)
            module.add_module("mask", grid_pool.to(_device(module)))
        elif isinstance(module, GlobalBlocks):
            _pool_globally(module)
        else:
            for name, mask in module.named_children():
                if isinstance(mask, WindowMask) and not isinstance(mask, Pool):
                    pool = Pool(mask.window, mask.keep, mask.shift)
                    module.add_module(name, pool.to(_device(module)))
    return model


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class Pool(WindowMask):
    """Groups of neighbours: every token joins the nearest of evenly spread centers.

    It stands in the place of :class:`ltm_mm.merging.Match` and keeps as many tokens. As there,
    parts that a shift keeps apart do not mix, nor padding with tokens.

    Args:
        window, keep, shift: as :func:`ltm_mm.merging.build_mask`.
    """

    roots: Tensor
    cost: Tensor

    def __init__(self, window: int, keep: int, shift: int = 0) -> None:
        super().__init__(window, keep, shift)
        centers = prior_centers(window, keep, shift)  # (P, 2)
        roots = (centers.floor() @ torch.tensor([window, 1.0])).long()
        line = torch.arange(window) + 0.5
        cost = torch.cdist(torch.cartesian_prod(line, line), centers).square()  # (N, P)
        cost[roots, torch.arange(keep)] = -1.0  # no group is empty
        regions = window_regions(window, shift) if shift else torch.zeros(1, window**2)
        apart = regions.unsqueeze(-1) != regions[:, roots].unsqueeze(-2)
        self.register_buffer("roots", roots, False)
        self.register_buffer("cost", cost + REGION_PENALTY**2 * apart, False)  # (4 or 1, N, P)

    def forward(self, tokens: Tensor, mass: Tensor | None, shift_index: Tensor | None) -> Groups:
        """Group the tokens of every window, as :meth:`ltm_mm.merging.Match.forward`."""
        cost = self.cost[:1] if shift_index is None else self.cost[shift_index]  # (1 or n, N, P)
        if mass is not None:
            real = mass > 0
            cost = cost + PADDING_PENALTY**2 * (
                real.unsqueeze(-1) != real[..., self.roots].unsqueeze(-2)
            )
        group_index = cost.argmin(-1).expand(tokens.shape[:-1])
        sizes = sum_groups(tokens.new_ones(*group_index.shape, 1), group_index, self.keep).squeeze(
            -1
        )
        return Groups(group_index, self.roots.expand(sizes.shape), sizes, mass)

    def _like(self, window: int, keep: int, shift: int) -> "Pool":
        return Pool(window, keep, shift).to(self.cost.device)


class GridPool(nn.Module):
    """The same in the place of :class:`ltm_mm.merging.grid.GridMerger`'s mask."""

    def __init__(self, window: int, keep: int) -> None:
        super().__init__()
        self.pool = Pool(window, keep)

    def forward(self, tokens: Tensor, mass: Tensor | None) -> SoftGroups:
        """Masks of fixed groups, as :meth:`ltm_mm.merging.soft.Soft.forward`."""
        groups = self.pool(tokens, mass, None)
        g, u = groups.masks()
        return SoftGroups(g, u, groups.merge(tokens))


class GlobalPool(MaskModule):
    """Groups of neighbours on an image's whole grid, merge after merge.

    It stands in the place of a :class:`GlobalBlock`'s mask module.

    Args:
        plan: tokens that are left of every ``tokens`` after each merge up to this one.
        tokens: what the plan's numbers are of.
    """

    size: GridSize  # of the grid; set before each pass, see `_pool_globally`

    def __init__(self, plan: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.keep, self.plan, self.tokens = plan[-1], plan, tokens

    def forward(self, x: Tensor, whole: int, sizes: Tensor | None) -> Groups | None:
        """Group tokens ``(B, M, C)``; None where so few are left already."""
        counts = [-(-whole * keep // self.tokens) for keep in self.plan]
        before = min((whole, *counts[:-1]))
        if counts[-1] >= before:
            return None
        group_index, roots = (t.to(x.device) for t in _neighbours(*self.size, before, counts[-1]))
        group_index, roots = group_index.expand(len(x), -1), roots.expand(len(x), -1)
        mass = x.new_ones(len(x), x.shape[1]) if sizes is None else sizes.to(x.dtype)
        total = sum_groups(mass.unsqueeze(-1), group_index, counts[-1]).squeeze(-1)
        return Groups(group_index, roots, total, sizes)


def _pool_globally(blocks: Any) -> None:
    plan: tuple[int, ...] = ()
    for block in blocks:
        if block.merge is None:
            continue
        plan = (*plan, block.merge.keep)
        block.merge = GlobalPool(plan, block.merge.tokens)
        block.register_forward_pre_hook(_set_chain_size)


def _set_chain_size(block: Any, args: tuple) -> None:
    block.merge.size = args[1].size  # of the chain


_set_chain_size.in_parts = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _neighbours(height: int, width: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Groups of neighbours on a grid: group indices and roots of a merge of ``before`` tokens.

    Ward's hierarchy of the positions: groups stay even, and those of a merge are made of whole
    groups of the one before.
    """
    # The tokens are groups already, or single tokens; any member tells where each one goes.
    token_ids = torch.arange(height * width)
    earlier = token_ids if before == len(token_ids) else _groups(height, width, before)
    group_index = _groups(height, width, after)[_first_members(earlier)]
    return group_index, _first_members(group_index)


def _first_members(group_index: Tensor) -> Tensor:
    """The first token of each group ``(P,)``."""
    first = torch.full((int(group_index.max()) + 1,), len(group_index))
    return first.scatter_reduce(0, group_index, torch.arange(len(group_index)), "amin")


def _groups(height: int, width: int, count: int) -> Tensor:
    """The group of each place ``(H * W,)``."""
    tree = _hierarchy(height, width)
    from scipy.cluster.hierarchy import cut_tree

    groups = cut_tree(tree, n_clusters=count)
    return torch.from_numpy(groups[:, 0].copy()).long()


@lru_cache(maxsize=8)
def _hierarchy(height: int, width: int) -> NDArray:
    """Ward's hierarchy of a grid's positions."""
    try:
        from scipy.cluster.hierarchy import linkage
    except ImportError as error:
        raise ImportError("pooling of a whole image needs scipy: pip install scipy") from error
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    return linkage(positions.numpy(), "ward")


def with_tome(model: nn.Module, pairs: int) -> nn.Module:
    """Replace a ViT's blocks by ToMe's, in place.

    Args:
        model: with one :class:`GlobalBlocks`.
        pairs: tokens that every block loses (ToMe's r).

    Returns:
        The model itself; its maps are unmerged as ours are.
    """
    blocks = next(m for m in model.modules() if isinstance(m, GlobalBlocks))
    for k, block in enumerate(blocks):
        blocks[k] = TomeBlock(block, pairs)
    return model


class TomeBlock(nn.Module):
    """Attention weighted by group size, ToMe's merge, and the MLP.

    Args:
        block: whose layers it shares.
        pairs: tokens that are lost, half of those that come in at most.
    """

    attn: Any
    norm1: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: GlobalBlock, pairs: int) -> None:
        super().__init__()
        self.prefix, self.pairs = block.prefix, pairs
        for name, layer in block.named_children():
            if name != "merge":
                setattr(self, name, layer)

    def forward(self, x: Tensor, chain: Chain) -> Tensor:
        """Run the block, as :meth:`GlobalBlock.forward`."""
        sizes = None if chain.last is None else chain.last.mask.sizes
        update, keys = self._attend(self.norm1(x), sizes)
        x = x + self.drop_path1(self.ls1(update))
        tokens = x[:, self.prefix :]
        groups = tome_groups(keys[:, self.prefix :], self.pairs, sizes)
        if groups is not None:
            merged = groups.merge(tokens)
            chain.merges.append(ChainMerge(tokens, merged, groups, chain.size, chain.last))
            x = torch.cat((x[:, : self.prefix], merged), 1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention's output ``(B, M, C)`` and the heads' mean key ``(B, M, d)``."""
        attn, (b, n, _) = self.attn, x.shape
        qkv = run_linear(attn.qkv, x).reshape(b, n, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, M, d)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = None
        if sizes is not None:
            bias = F.pad(sizes.log(), (self.prefix, 0))[:, None, None].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=attn.scale)
        out = attn.norm(out.transpose(1, 2).reshape(b, n, -1))
        return attn.proj_drop(run_linear(attn.proj, out)), k.mean(1)


def tome_groups(metric: Tensor, pairs: int, sizes: Tensor | None) -> Groups | None:
    """One round of ToMe's bipartite matching.

    Tokens are split alternately in two sets; each of the first finds the most similar of the
    second by cosine, and the best pairs merge.

    Args:
        metric: what is compared ``(B, M, d)``.
        pairs: how many merge; half of the tokens at most do.
        sizes: how many patches each token stands for ``(B, M)``; None: 1 each.

    Returns:
        The groups, those of the first set before those of the second; None for no pairs.
    """
    b, count, _ = metric.shape
    pairs = min(pairs, count // 2)
    if pairs < 1:
        return None
    x = F.normalize(metric, dim=-1)
    best, partner = (x[:, 1::2] @ x[:, 0::2].mT).max(-1)  # (B, A)
    alone = best.shape[1] - pairs
    gone = torch.zeros_like(best, dtype=torch.bool)
    gone = gone.scatter(1, best.topk(pairs, 1).indices, True)
    second = alone + torch.arange(count - best.shape[1], device=x.device).expand(b, -1)
    group_index = torch.empty(b, count, dtype=torch.long, device=x.device)
    group_index[:, 0::2] = second
    group_index[:, 1::2] = torch.where(gone, second.gather(1, partner), (~gone).cumsum(1) - 1)
    token_ids = torch.arange(count, device=x.device).expand(b, -1)
    roots = torch.empty(b, count - pairs, dtype=torch.long, device=x.device)
    kept = gone.int().argsort(dim=1, stable=True)[:, :alone]  # without waiting for a GPU
    roots[:, :alone] = token_ids[:, 1::2].gather(1, kept)
    roots[:, alone:] = token_ids[:, 0::2]
    mass = x.new_ones(b, count) if sizes is None else sizes
    total = sum_groups(mass.unsqueeze(-1), group_index, count - pairs).squeeze(-1)
    return Groups(group_index, roots, total, sizes)

"""Transformer blocks with global attention that merge tokens: ViT's and MobileViT's.

The blocks are timm's (``timm.models.vision_transformer.Block``, Apache-2.0). Merging between
attention and MLP follows the paper (arXiv 2407.15219, section 3) and ToMe (Bolya et al., ICLR
2023), whose proportional attention weights keys; how tokens are matched and residual unmerging are
ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers import fast_attention, fast_mlp
from ...layers.cpu_attention_mlp import children
from ...layers.swap_class import SwappedClass, refuse_tracing, swap_class
from ...merging import (
    ChainMerge,
    Groups,
    MaskModule,
    MergeScope,
    MergingBlock,
    has_listeners,
    match,
    notify_merge,
    rounds,
)
from ...ops import is_empty

PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
GridSize = tuple[int, int]


@dataclass
class Chain:
    """What the blocks of one pass hand on besides their tokens.

    Attributes:
        size: H and W of the grid.
        with_cp: recompute each block's activations in the backward pass.
        merges: the merges so far.
    """

    size: GridSize
    with_cp: bool = False
    merges: list[ChainMerge] = field(default_factory=list)

    @property
    def last(self) -> ChainMerge | None:
        """The merge that produced the tokens; None: they are those of the grid."""
        return self.merges[-1] if self.merges else None


class GlobalBlocks(SwappedClass, MergeScope):
    """A sequence of blocks that merge tokens; their outputs are unmerged to all tokens."""

    def forward(
        self,
        x: Tensor,
        size: GridSize | None = None,
        take: Iterable[int] | None = None,
        with_cp: bool = False,
    ) -> list[Tensor] | Tensor:
        """Run the blocks, up to the last one whose output is requested.

        Args:
            x: prefix and grid tokens, row by row ``(B, T + H * W, C)``.
            size: H and W of the grid, as merges are recorded with; None: one row.
            take: blocks whose outputs are returned; None: only the last one's.
            with_cp: recompute each block's activations in the backward pass.

        Returns:
            One ``(B, T + H * W, C)`` per block of ``take``, in the blocks' order; without ``take``
            a tensor.
        """
        refuse_tracing(x)
        prefix = self[0].prefix
        chain, outs = Chain(size or (1, x.shape[1] - prefix), with_cp), []
        taken = {len(self) - 1} if take is None else set(take)
        if is_empty(x):
            return x if take is None else [x] * len(taken)
        for k, block in enumerate(islice(self, max(taken) + 1)):
            x = block(x, chain)
            if k in taken:
                outs.append(_unmerged(x, chain.merges, prefix))
        return outs[0] if take is None else outs


def _unmerged(x: Tensor, merges: Sequence[ChainMerge], prefix: int) -> Tensor:
    if not merges:
        return x
    grid = x[:, prefix:]
    for merge in reversed(merges):
        grid = merge.tokens + merge.mask.unmerge(grid - merge.merged)
    return torch.cat((x[:, :prefix], grid), 1)


class GlobalBlock(SwappedClass, MergingBlock):
    """timm's ``Block``: attention among all tokens, a merge where planned, and the MLP.

    Its ``merge`` groups the tokens after the attention (None: nothing is merged); ``prefix`` is the
    number of class and register tokens before the grid's.
    """

    EXTRAS = ("merge", "prefix")

    def forward(self, x: Tensor, chain: object = None, **options: object) -> Tensor:
        """Run the block.

        Args:
            x: prefix and grid tokens, or merged tokens ``(B, T + M, C)``.
            chain: state of this pass; receives the block's merge.
            **options: timm's; none is supported.

        Returns:
            The output ``(B, T + M', C)``.
        """
        if not isinstance(chain, Chain):
            raise ValueError(
                "a merging ViT's block runs within its model's forward pass alone, and takes no "
                "attention mask: call ltm_mm.remove(model) first"
            )
        if chain.with_cp and x.requires_grad:
            x, merged = checkpoint(self._run, x, chain.size, chain.last, use_reentrant=False)
        else:
            x, merged = self._run(x, chain.size, chain.last)
        if merged is not None:
            chain.merges.append(merged)
        return x

    def _run(
        self, x: Tensor, size: GridSize, earlier: ChainMerge | None
    ) -> tuple[Tensor, ChainMerge | None]:
        options = {}
        if earlier is not None:
            options["attn_mask"] = self._attention_bias(earlier.mask.sizes).to(x.dtype)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **options)))
        merged = None
        if self.merge is not None:
            tokens = x[:, self.prefix :]
            mask = self.merge(tokens, size[0] * size[1], earlier and earlier.mask.sizes)
            if mask is not None:
                merged = ChainMerge(tokens, mask.merge_own(tokens), mask, size, earlier)
                if has_listeners():
                    notify_merge(self.merge, merged)
                x = torch.cat((x[:, : self.prefix], merged.merged), 1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), merged

    def _attention_bias(self, sizes: Tensor) -> Tensor:
        """Log of how many tokens every key stands for ``(B, 1, 1, T + M)``."""
        return F.pad(sizes.log(), (self.prefix, 0))[:, None, None]


def merge_blocks(
    blocks: nn.Sequential, plan: Sequence[int], tokens: int, prefix: int = 0
) -> nn.Sequential:
    """Make a sequence of timm's blocks merge tokens, in place; see :class:`GlobalBlocks`.

    Args:
        blocks: timm's ``Block`` modules; their classes and the sequence's are swapped.
        plan: tokens kept per ``tokens`` after each block's attention, never rising; merged tokens
            are carried to the later blocks.
        tokens: number of tokens that the plan's numbers refer to.
        prefix: class and register tokens before the grid's; never merged.

    Returns:
        The sequence itself.

    Raises:
        ValueError: if a block differs from timm's plain ``Block``.
    """
    check_blocks(blocks)
    before = (tokens, *plan[:-1])  # what comes into each block
    for block, last, keep in zip(blocks, before, plan, strict=True):
        merge = GlobalMatch(keep, last, tokens) if keep < last else None
        swap_class(block, GlobalBlock, merge=merge, prefix=prefix)
        fast_attention(block.attn)
        fast_mlp(block.mlp)
    swap_class(blocks, GlobalBlocks)
    return blocks


def check_blocks(blocks: Iterable[nn.Module]) -> None:
    """Raise a ValueError unless all are timm's plain blocks."""
    for block in blocks:
        if children(block) != PARTS:
            raise ValueError(
                f"{type(block).__name__} cannot merge tokens: only timm's plain transformer "
                "Block, of vit_small_patch16_224 and the like, can"
            )


class GlobalMatch(MaskModule):
    """Groups of similar tokens of a whole image, by matching; it has no parameters.

    Args:
        keep: tokens kept per ``tokens`` of the grid (rounded up).
        before: input tokens per ``tokens`` of the grid.
        tokens: number of tokens that ``keep`` and ``before`` refer to.
    """

    def __init__(self, keep: int, before: int, tokens: int) -> None:
        super().__init__()
        self.keep, self.before, self.tokens = keep, before, tokens
        # What the rounds leave per `tokens`. Their number does not depend on the image size, so one
        # graph works for all sizes.
        self.left = tuple(before - done for done in accumulate(rounds(before, keep)))

    def forward(self, x: Tensor, whole: int, sizes: Tensor | None) -> Groups | None:
        """Group tokens.

        Args:
            x: ``(B, M, C)``.
            whole: tokens of the grid, before any merge.
            sizes: how many tokens of the grid each stands for ``(B, M)``; None: 1.

        Returns:
            The groups; None if no more tokens than that are left.
        """
        left = [(whole * k + self.tokens - 1) // self.tokens for k in (self.before, *self.left)]
        if not torch.compiler.is_compiling() and x.shape[1] != left[0]:
            raise ValueError(
                f"a block that merges {left[0]} tokens got {x.shape[1]}: a part of a merging ViT's "
                "blocks must begin with the first one, e.g. blocks[:2], because later blocks take "
                "merged tokens; call ltm_mm.remove(model) first"
            )
        pairs = [before - after for before, after in pairwise(left)]
        if not torch.compiler.is_compiling():  # no branch on a symbolic size
            pairs = [count for count in pairs if count > 0]
            if not pairs:
                return None
        learns = torch.is_grad_enabled() and x.requires_grad
        matched = match(x, pairs, sizes, sums=not learns)
        return Groups.of(matched, sizes, x.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"keep={self.keep} of {self.tokens}"

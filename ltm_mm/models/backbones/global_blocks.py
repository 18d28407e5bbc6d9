"""Transformer blocks with global attention that merge tokens: ViT's and MobileViT's.

The blocks are timm's (``timm.models.vision_transformer.Block``, Apache-2.0). Merging between
attention and MLP is the paper's place (arXiv 2407.15219, section 3) and ToMe's (Bolya et al., ICLR
2023), whose proportional attention weighs keys; how tokens are matched and residual unmerging are
ours, as everywhere here.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers import fast_attention, fast_mlp
from ...merging import ChainMerge, Groups, match, recording, rounds, tell

PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
Size = tuple[int, int]


class GlobalBlocks(nn.Sequential):
    """Blocks that merge on the way in; their maps are unmerged to all tokens.

    They share the given blocks' layers and have the same parameter names. The given blocks are
    not changed.

    Args:
        blocks: timm's ``Block`` modules.
        plan: tokens that are left of every ``tokens`` after each block's attention, never
            rising; merged tokens live on through the later blocks.
        tokens: what the plan's numbers are of.
        prefix: class and register tokens before the grid's; never merged.
        with_cp: recompute each block's activations in the backward pass.

    Raises:
        ValueError: if a block is built otherwise than timm's plain ``Block``.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        plan: Sequence[int],
        tokens: int,
        prefix: int = 0,
        with_cp: bool = False,
    ) -> None:
        before = (tokens, *plan[:-1])  # what comes into each block
        super().__init__(
            *(
                GlobalBlock(
                    block, GlobalMatch(keep, last, tokens) if keep < last else None, prefix, with_cp
                )
                for block, last, keep in zip(blocks, before, plan, strict=True)
            )
        )
        self.prefix = prefix

    def forward(  # type: ignore[override]
        self, x: Tensor, size: Size, take: Iterable[int]
    ) -> list[Tensor]:
        """Run the blocks.

        Args:
            x: prefix and grid tokens, row by row ``(B, T + H * W, C)``.
            size: H and W of the grid.
            take: blocks whose outputs are wanted.

        Returns:
            One ``(B, T + H * W, C)`` per block of ``take``, in the blocks' order.
        """
        taken, merges, outs = set(take), [], []
        for k, block in enumerate(self):
            x, merged = block(x, size, merges[-1] if merges else None)
            if merged is not None:
                merges.append(merged)
            if k in taken:
                outs.append(self._unmerged(x, merges))
        return outs

    def _unmerged(self, x: Tensor, merges: Sequence[ChainMerge]) -> Tensor:
        if not merges:
            return x
        grid = x[:, self.prefix :]
        for merge in reversed(merges):
            grid = merge.tokens + merge.mask.unmerge(grid - merge.merged)
        return torch.cat((x[:, : self.prefix], grid), 1)


class GlobalBlock(nn.Module):
    """Attention among all tokens, a merge where planned, and the MLP.

    Args:
        block: timm's ``Block``, whose layers it shares.
        merge: groups what is left after the attention; None: nothing is merged.
        prefix: class and register tokens before the grid's.
        with_cp: recompute the activations in the backward pass.

    Raises:
        ValueError: if the block is built otherwise than timm's plain ``Block``.
    """

    def __init__(
        self,
        block: nn.Module,
        merge: "GlobalMatch | None",
        prefix: int,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if {name for name, _ in block.named_children()} != PARTS:
            raise ValueError(
                f"{type(block).__name__} cannot merge tokens: only timm's plain transformer "
                "Block, of vit_small_patch16_224 and the like, can"
            )
        self.prefix = prefix
        self.with_cp = with_cp
        self.norm1, self.attn = block.norm1, fast_attention(block.attn)
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.merge = merge
        self.norm2, self.mlp = block.norm2, fast_mlp(block.mlp)
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(
        self, x: Tensor, size: Size, earlier: ChainMerge | None
    ) -> tuple[Tensor, ChainMerge | None]:
        """Run the block.

        Args:
            x: prefix and grid tokens, or merged tokens ``(B, T + M, C)``.
            size: H and W of the grid.
            earlier: the merge that made them, if any.

        Returns:
            What goes out ``(B, T + M', C)``, and this block's merge if it makes one.
        """
        if self.with_cp and x.requires_grad:
            return checkpoint(self._run, x, size, earlier, use_reentrant=False)
        return self._run(x, size, earlier)

    def _run(
        self, x: Tensor, size: Size, earlier: ChainMerge | None
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
                means = mask.merge(tokens) if mask.merged is None else mask.merged
                merged = ChainMerge(tokens, means, mask, size, earlier)
                if recording():
                    tell(self.merge, merged)
                x = torch.cat((x[:, : self.prefix], merged.merged), 1)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), merged

    def _attention_bias(self, sizes: Tensor) -> Tensor:
        """Log of how many tokens every key stands for ``(B, 1, 1, T + M)``."""
        return F.pad(sizes.log(), (self.prefix, 0))[:, None, None]


class GlobalMatch(nn.Module):
    """Groups of tokens of a whole image that are alike, by matching; nothing is learned.

    Args:
        keep: tokens that are left of every ``tokens`` of the grid (rounded up).
        before: how many of them come in.
        tokens: what ``keep`` and ``before`` are of.
    """

    def __init__(self, keep: int, before: int, tokens: int) -> None:
        super().__init__()
        self.keep, self.tokens = keep, tokens
        # What the rounds leave of every `tokens`. Their number depends on no image's size, so
        # that one graph serves all sizes.
        self.left = tuple(before - done for done in accumulate(rounds(before, keep)))

    def forward(self, x: Tensor, whole: int, sizes: Tensor | None) -> Groups | None:
        """Group tokens.

        Args:
            x: ``(B, M, C)``.
            whole: tokens of the grid, before any merge.
            sizes: how many tokens of the grid each stands for ``(B, M)``; None: 1.

        Returns:
            The groups; None where so few tokens are left already.
        """
        left = [x.shape[1], *((whole * k + self.tokens - 1) // self.tokens for k in self.left)]
        pairs = [before - after for before, after in pairwise(left)]
        if not torch.compiler.is_compiling():  # no branch on a symbolic size
            pairs = [count for count in pairs if count > 0]
            if not pairs:
                return None
        learns = torch.is_grad_enabled() and x.requires_grad
        found = match(x, pairs, sizes, sums=not learns)
        return Groups.of(found, sizes, x.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"keep={self.keep} of {self.tokens}"

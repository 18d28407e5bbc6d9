"""Transformer blocks with global attention that merge tokens: ViT's and MobileViT's.

The blocks are timm's (``timm.models.vision_transformer.Block``, Apache-2.0); merging
windows of the grid and residual unmerging are ours, as everywhere here.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers import TokenMerger, fast_attention, fast_mlp
from ...ops import Merge
from .base import unmerge_all

PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
Size = tuple[int, int]


class GlobalBlocks(nn.Sequential):
    """Blocks that merge on the way in; their maps are unmerged to all tokens.

    They share the given blocks' layers and have the same parameter names, plus those
    that contain ``.merge.``. The given blocks are not changed.

    Args:
        blocks: timm's ``Block`` modules.
        plan: slots per window side that each block's MLP runs on, one int per block.
        window: tokens per window side.
        prefix: class and register tokens before the grid's; never merged.
        steps: content steps of the mask modules.
        mass_attention: see :class:`GlobalBlock`.
        with_cp: recompute each block's activations in the backward pass.

    Raises:
        ValueError: if a block is built otherwise than timm's plain ``Block``.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        plan: Sequence[int],
        window: int,
        prefix: int = 0,
        steps: int = 2,
        mass_attention: bool = False,
        with_cp: bool = False,
    ) -> None:
        grids = (window, *plan[:-1])  # tokens per window side that come into each block
        super().__init__(
            *(
                GlobalBlock(block, grid, slots, prefix, steps, mass_attention, with_cp)
                for block, grid, slots in zip(blocks, grids, plan, strict=True)
            )
        )
        self.prefix = prefix

    def forward(  # type: ignore[override]
        self, x: Tensor, size: Size, take: Iterable[int], unmerge: bool = True
    ) -> list[tuple[Tensor, Size]]:
        """Run the blocks.

        Args:
            x: prefix and grid tokens, row by row ``(B, T + H * W, C)``.
            size: H and W of the grid.
            take: blocks whose outputs are wanted.
            unmerge: lead them back to all tokens; otherwise slots stay slots.

        Returns:
            One ``(B, T + H * W, C)`` and its H and W per block of ``take``, in the blocks'
            order.
        """
        taken, whole, merges, outs = set(take), size, [], []
        for k, block in enumerate(self):
            x, size, merged = block(x, size, merges[-1] if merges else None)
            if merged is not None:
                merges.append(merged)
            if k in taken:
                outs.append((self._unmerged(x, size, merges), whole) if unmerge else (x, size))
        return outs

    def _unmerged(self, x: Tensor, size: Size, merges: Sequence[Merge]) -> Tensor:
        if not merges:
            return x
        grid = unmerge_all(x[:, self.prefix :].unflatten(1, size), merges)
        return torch.cat((x[:, : self.prefix], grid.flatten(1, 2)), 1)


class GlobalBlock(nn.Module):
    """Attention among all tokens, a merge where planned, and the MLP.

    Args:
        block: timm's ``Block``, whose layers it shares.
        grid: tokens or slots per window side that come in.
        slots: slots per window side that go out.
        prefix: class and register tokens before the grid's.
        steps: content steps of the mask module.
        mass_attention: attention to a slot is weighted by how many tokens it stands for
            (ToMe's proportional attention, Bolya et al., ICLR 2023), to a prefix token
            by 1. Without, all weigh the same.
        with_cp: recompute the activations in the backward pass.

    Raises:
        ValueError: if the block is built otherwise than timm's plain ``Block``.
    """

    def __init__(
        self,
        block: nn.Module,
        grid: int,
        slots: int,
        prefix: int,
        steps: int = 2,
        mass_attention: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if {name for name, _ in block.named_children()} != PARTS:
            raise ValueError(
                f"{type(block).__name__} cannot merge tokens: only timm's plain transformer "
                "Block, of vit_small_patch16_224 and the like, can"
            )
        self.prefix = prefix
        self.mass_attention = mass_attention
        self.with_cp = with_cp
        self.norm1, self.attn = block.norm1, fast_attention(block.attn)
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.merge = None
        if slots < grid:
            self.merge = TokenMerger(grid, slots, steps).to(block.norm2.weight)
        self.norm2, self.mlp = block.norm2, fast_mlp(block.mlp)
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(
        self, x: Tensor, size: Size, earlier: Merge | None
    ) -> tuple[Tensor, Size, Merge | None]:
        """Run the block.

        Args:
            x: prefix and grid tokens, or slots ``(B, T + H * W, C)``.
            size: H and W of the grid.
            earlier: the merge that made them slots, if any.

        Returns:
            What goes out ``(B, T + h * w, C)``, its h and w, and this block's merge if
            it makes one.
        """
        if self.with_cp and x.requires_grad:
            return checkpoint(self._run, x, size, earlier, use_reentrant=False)
        return self._run(x, size, earlier)

    def _run(
        self, x: Tensor, size: Size, earlier: Merge | None
    ) -> tuple[Tensor, Size, Merge | None]:
        mass = earlier.slot_mass() if earlier else None
        options = {}
        if self.mass_attention and mass is not None:
            options["attn_mask"] = self._attention_bias(mass).to(x.dtype)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **options)))
        merged = None
        if self.merge is not None:
            merged = self.merge(x[:, self.prefix :].unflatten(1, size), mass)
            x = torch.cat((x[:, : self.prefix], merged.slots.flatten(1, 2)), 1)
            size = (merged.slots.shape[1], merged.slots.shape[2])
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), size, merged

    def _attention_bias(self, mass: Tensor) -> Tensor:
        """Log of the masses of all keys ``(1 or B, 1, 1, T + h * w)``."""
        bias = mass.flatten(1).clamp(min=1e-6).log()  # (1 or B, h * w)
        return nn.functional.pad(bias, (self.prefix, 0))[:, None, None]

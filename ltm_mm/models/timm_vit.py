"""Merging inside timm's own ViT classifier (ours); :mod:`.apply` puts it there.

timm's blocks know neither the size of their grid nor each other, so the model's class is
exchanged, too: its two forward passes run all blocks at once, with the grid's size.
"""

from collections.abc import Iterable, Sequence

from timm.models import VisionTransformer
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .apply import MergedStage
from .backbones.global_blocks import GlobalBlocks
from .backbones.vit import TOKENS


class MergedVisionTransformer(VisionTransformer):
    """timm's ``VisionTransformer`` whose ``blocks`` are :class:`MergedVitBlocks`."""

    def forward_features(self, x: Tensor, **masks: object) -> Tensor:
        """Images -> prefix and patch tokens ``(B, T + N, C)``, normalised as timm does."""
        return self.norm(self._run(x, (len(self.blocks) - 1,), masks)[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **masks: object,
    ) -> list | tuple[Tensor, list]:
        """As timm's, but for ``output_dict`` and attention masks; runs all blocks."""
        take, last = feature_take_indices(len(self.blocks), indices)[0], len(self.blocks) - 1
        taken = self._run(x, {*take, last}, masks)
        outs = [self.norm(y) if norm else y for y in taken[: len(set(take))]]
        count = self.num_prefix_tokens
        prefixes, maps = [y[:, :count] for y in outs], [y[:, count:] for y in outs]
        if output_fmt == "NCHW":
            size = self._grid(x)
            maps = [y.unflatten(1, size).permute(0, 3, 1, 2).contiguous() for y in maps]
        found = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
        return found if intermediates_only else (self.norm(taken[-1]), found)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, or not."""
        self.grad_checkpointing = enable
        for block in self.blocks:
            block.with_cp = enable

    def _run(self, x: Tensor, take: Iterable[int], masks: dict) -> list[Tensor]:
        if any(value is not None and value is not False for value in masks.values()):
            raise ValueError(
                f"a merging ViT takes no {', '.join(masks)}: merged tokens have no fixed mask"
            )
        size = self._grid(x)
        tokens = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        return self.blocks(tokens, size, take)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        return tuple(self.patch_embed.dynamic_feat_size(tuple(x.shape[2:])))


class MergedVitBlocks(GlobalBlocks, MergedStage):
    """In the place of a timm ViT's ``blocks``.

    Args:
        vit: the model; its class is exchanged.
        counts: tokens that are left of every 196 after each block's attention.

    Raises:
        ValueError: if the model drops patches at random, or has other blocks than timm's
            plain ones.
    """

    def __init__(self, vit: VisionTransformer, counts: Sequence[int]) -> None:
        if not isinstance(vit.patch_drop, nn.Identity):
            raise ValueError("a ViT with patch_drop_rate has no grid to lead back to: set it to 0")
        super().__init__(
            vit.blocks, counts, TOKENS, vit.num_prefix_tokens, with_cp=vit.grad_checkpointing
        )
        self._original = (vit.blocks,)
        vit.__class__ = MergedVisionTransformer

    def let_go(self, parent: nn.Module) -> None:
        """Give the model its class back."""
        parent.__class__ = VisionTransformer

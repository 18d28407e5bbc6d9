"""Merging inside timm's own ViT classifier.

timm's blocks know neither the size of their grid nor each other, so the model's class is
swapped, too: its two forward passes run all blocks at once, with the grid's size.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..layers.swap_class import SwappedClass, refuse_tracing, swap_class
from .backbones.global_blocks import check_blocks, merge_blocks
from .backbones.vit import TOKENS

if TYPE_CHECKING:
    from timm.models import VisionTransformer


class MergedVisionTransformer(SwappedClass):
    """timm's ``VisionTransformer`` whose blocks merge."""

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Images -> prefix and patch tokens ``(B, T + N, C)``, normalised as timm does."""
        _refuse_mask(attn_mask, is_causal)
        return self.norm(self._run(x, (len(self.blocks) - 1,))[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> list | tuple[Tensor, list] | dict[str, list | Tensor]:
        """As timm's, unmerged to all patches; attention masks are not supported.

        Raises:
            ValueError: for an attention mask, or if ``output_fmt`` is neither 'NCHW' nor 'NLC'.
        """
        from timm.models._features import feature_take_indices

        _refuse_mask(attn_mask, is_causal)
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        take, highest = feature_take_indices(len(self.blocks), indices)
        last = highest if stop_early else len(self.blocks) - 1
        taken = self._run(x, {*take, last})
        outs = [self.norm(y) if norm else y for y in taken[: len(set(take))]]
        count = self.num_prefix_tokens
        prefixes, maps = [y[:, :count] for y in outs], [y[:, count:] for y in outs]
        if output_fmt == "NCHW":
            size = self._grid(x)
            maps = [y.unflatten(1, size).permute(0, 3, 1, 2).contiguous() for y in maps]
        with_prefixes = return_prefix_tokens and count > 0
        if output_dict:
            features: dict[str, list | Tensor] = {"image_intermediates": maps}
            if with_prefixes:
                features["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                features["image_features"] = self.norm(taken[-1])
            return features
        pairs = list(zip(maps, prefixes, strict=True)) if with_prefixes else maps
        return pairs if intermediates_only else (self.norm(taken[-1]), pairs)

    def _run(self, x: Tensor, take: Iterable[int]) -> list[Tensor]:
        refuse_tracing(x)
        size = self._grid(x)
        tokens = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        return self.blocks(tokens, size, take, self.grad_checkpointing)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        return tuple(self.patch_embed.dynamic_feat_size(tuple(x.shape[2:])))


def _refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    refuse_tracing(is_causal)
    if attn_mask is not None or is_causal:
        raise ValueError(
            "a merging ViT takes no attention mask (attn_mask, is_causal): a mask is of tokens, "
            "and merged tokens are groups of them; call ltm_mm.remove(model) first"
        )


def check_vit(vit: "VisionTransformer") -> None:
    """Raise a ValueError if a model drops patches at random or has other than plain blocks."""
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("a ViT with patch_drop_rate has no grid to unmerge to: set it to 0")
    check_blocks(vit.blocks)


def merge_vit(vit: "VisionTransformer", counts: Sequence[int]) -> None:
    """Let a ViT merge tokens, in place.

    Args:
        vit: timm's; its class is swapped, and those of its blocks.
        counts: tokens that are left of every 196 after each block's attention.
    """
    merge_blocks(vit.blocks, counts, TOKENS, vit.num_prefix_tokens)
    swap_class(vit, MergedVisionTransformer)

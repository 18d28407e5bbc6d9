"""Swin weights of the authors' repository (microsoft/Swin-Transformer) -> mmdet's names.

The facts: blocks lie under ``layers.{i}``; the patch merging that follows stage i is
``layers.{i}.downsample`` and concatenates the four neighbours as (0,0), (1,0), (0,1),
(1,1) (row, column) with all channels of one neighbour together, where mmdet's
``nn.Unfold`` gives, for every channel, (0,0), (0,1), (1,0), (1,1). Detection and
segmentation files of the same authors use these names too, with ``norm0..3`` added.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

RENAMES = (
    (r"^layers[._](\d+)\.", r"stages.\1."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
# The classifier and the final norm before it. mmdet and the authors' detection code
# leave that norm out as well: a pyramid norms each level on its own, and the published
# recipes were tuned with all four output norms (norm0..3) starting fresh.
# SimMIM's mask token has no use after pre-training. The rest are tables that follow
# from the window and image size alone.
UNUSED = re.compile(r"^(head|norm)\.|^mask_token$|\.(attn_mask|relative_position_index)$")


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official Swin state dict -> mmdet ``SwinTransformer`` names and channel order.

    Args:
        state_dict: keys without any prefix (``patch_embed.proj.weight``, ...).

    Returns:
        A new dict; reordered tensors are new, the others are shared.
    """
    return {
        key: to_unfold_order(value) if ".downsample." in key else value
        for key, value in renamed_entries(state_dict, UNUSED, RENAMES)
    }


def renamed_entries(
    state_dict: Mapping[str, Tensor], unused: re.Pattern, renames: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Tensor]]:
    """Key and value of the entries that are of use, under their new names.

    Args:
        state_dict: keys without any prefix.
        unused: matches the keys that are left out.
        renames: patterns and what they become, one after the other.
    """
    for key, value in state_dict.items():
        if unused.search(key):
            continue
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        yield key, value


def to_unfold_order(weight: Tensor) -> Tensor:
    """Reorder the inputs of a patch merging from Swin's to ``nn.Unfold``'s order.

    Args:
        weight: ``(..., 4C)``: the reduction's weight ``(2C, 4C)`` or the norm's ``(4C,)``.

    Returns:
        Same shape.
    """
    corners = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]  # (..., 4, C)
    return corners.transpose(-1, -2).flatten(-2)

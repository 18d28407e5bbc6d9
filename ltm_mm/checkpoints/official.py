"""Swin weights of the authors' repository (microsoft/Swin-Transformer) -> mmdet's names.

The facts: blocks lie under ``layers.{i}``; the patch merging that follows stage i is
``layers.{i}.downsample`` and concatenates the four neighbours as (0,0), (1,0), (0,1),
(1,1) (row, column) with all channels of one neighbour together, where mmdet's
``nn.Unfold`` gives, for every channel, (0,0), (0,1), (1,0), (1,1). Detection and
segmentation files of the same authors use these names too, with ``norm0..3`` added.
"""

import re
from collections.abc import Mapping

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
    out = {}
    for key, value in state_dict.items():
        if UNUSED.search(key):
            continue
        for pattern, name in RENAMES:
            key = re.sub(pattern, name, key)
        out[key] = to_unfold_order(value) if ".downsample." in key else value
    return out


def to_unfold_order(weight: Tensor) -> Tensor:
    """Reorder the inputs of a patch merging from Swin's to ``nn.Unfold``'s order.

    Args:
        weight: ``(..., 4C)``: the reduction's weight ``(2C, 4C)`` or the norm's ``(4C,)``.

    Returns:
        Same shape.
    """
    corners = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]  # (..., 4, C)
    return corners.transpose(-1, -2).flatten(-2)

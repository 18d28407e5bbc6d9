"""torchvision's Swin weights -> the names used here.

The facts: ``features`` is one sequence: the patch embedding, then stages at odd and patch mergings
at even places. Patch merging has the order of the authors' code (see :mod:`.official`).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .official import UNUSED, to_unfold_order

RENAMES = (
    (r"^features\.0\.0\.", "patch_embed.projection."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.0\.", ".ffn.layers.0.0."),
    (r"\.mlp\.3\.", ".ffn.layers.1."),
)


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision Swin state dict, without its classifier -> mmdet's names and channel order.

    Args:
        state_dict: keys without any prefix (``features.0.0.weight``, ...).

    Returns:
        A new dict; reordered tensors are new, the others are shared.
    """
    out = {}
    for key, value in state_dict.items():
        if UNUSED.search(key):
            continue
        for pattern, name in RENAMES:
            key = re.sub(pattern, name, key)
        if match := re.match(r"features\.(\d+)\.(.*)", key):
            index = int(match[1])
            key = f"stages.{(index - 1) // 2}.{'blocks' if index % 2 else 'downsample'}.{match[2]}"
        out[key] = to_unfold_order(value) if ".downsample." in key else value
    return out

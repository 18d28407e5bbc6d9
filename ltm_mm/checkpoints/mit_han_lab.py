"""EfficientViT weights of MIT Han Lab's repository (mit-han-lab/efficientvit) -> timm's names.

The facts, from its ``models/efficientvit/backbone.py``: blocks lie in ``op_list``. The B
series has its stem apart (``input_stem.op_list.{k}``) and four stages; the L series counts
the stem as ``stages.0``. Within a block timm kept the authors' names.
"""

import re
from collections.abc import Mapping

from torch import Tensor


def convert_efficientvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MIT Han Lab EfficientViT state dict (B or L series) -> timm's names.

    Args:
        state_dict: keys without any prefix (``input_stem.op_list.0.conv.weight``, ...).

    Returns:
        A new dict (``stem.*``, ``stages.*``), without heads, that shares its tensors.
    """
    large = not any(key.startswith("input_stem.") for key in state_dict)
    out = {}
    for key, value in state_dict.items():
        match = re.match(r"(input_stem|stages\.(\d+))\.op_list\.(\d+)\.(.+)", key)
        if match is None:
            continue  # a classification, segmentation or SAM head
        stage, block, rest = match[2], int(match[3]), match[4]
        if stage is None or (large and stage == "0"):
            out[f"stem.res{block - 1}.{rest}" if block else f"stem.in_conv.{rest}"] = value
        else:
            out[f"stages.{int(stage) - large}.blocks.{block}.{rest}"] = value
    return out

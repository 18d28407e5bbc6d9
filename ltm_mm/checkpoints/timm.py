"""timm's Swin, MIT EfficientViT, ViT and MobileViT weights -> the names used here.

The facts: since timm 0.9 a Swin stage *starts* with its patch merging
(``layers.{i}.downsample``, i >= 1); files from before have the official names and go
through :mod:`.official`.
``features_only`` models flatten sequential containers: ``layers_0.``, ``stages_0.``,
``stem_in_conv.``. A classifier that pools the patches has its last norm behind the
pooling (``fc_norm``), others before it (``norm``).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from . import official


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm Swin state dict (0.9 or later, also ``features_only``) -> mmdet's names.

    Args:
        state_dict: keys without any prefix (``layers.1.downsample.norm.weight``, ...).

    Returns:
        A new dict; reordered tensors are new, the others are shared.
    """
    out = {}
    for key, value in official.convert_swin(state_dict).items():
        if match := re.match(r"stages\.(\d+)\.(downsample\..*)", key):
            key = f"stages.{int(match[1]) - 1}.{match[2]}"
        out[key] = value
    return out


def convert_efficientvit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm ``EfficientVit``/``EfficientVitLarge`` state dict, without its classifier.

    Args:
        state_dict: keys without any prefix, of the whole or the ``features_only`` model.

    Returns:
        A new dict (``stem.*``, ``stages.*``) that shares its tensors.
    """
    return {
        re.sub(r"^(stem|stages)_", r"\1.", key): value
        for key, value in state_dict.items()
        if not key.startswith("head.")
    }


def convert_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm ``VisionTransformer`` state dict, without its classifier.

    Args:
        state_dict: keys without any prefix (``cls_token``, ``blocks.0. ...``).

    Returns:
        A new dict that shares its tensors; the last norm is ``norm``.
    """
    return {
        re.sub(r"^fc_norm\.", "norm.", key): value
        for key, value in state_dict.items()
        if not key.startswith(("head.", "attn_pool."))
    }


def convert_mobilevit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm MobileViT state dict, without its classifier.

    Args:
        state_dict: keys without any prefix, of the whole or the ``features_only`` model.

    Returns:
        A new dict (``stem.*``, ``stages.*``, ``final_conv.*``) that shares its tensors.
    """
    return convert_efficientvit(state_dict)  # the same containers, the same head

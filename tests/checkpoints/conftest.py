"""Tiny Swins with random weights, in the formats of their sources."""

import re

import pytest
import timm.models.swin_transformer as timm_swin
from torch import Tensor

from .tiny import randomize


@pytest.fixture
def timm_model() -> timm_swin.SwinTransformer:
    """timm's Swin of ``TINY``'s size."""
    return randomize(
        timm_swin.SwinTransformer(
            img_size=128, embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4,
            num_classes=5, always_partition=True,
        )
    )  # fmt: skip


@pytest.fixture
def official_weights(timm_model: timm_swin.SwinTransformer) -> dict[str, Tensor]:
    """The same weights as microsoft/Swin-Transformer saves them."""
    weights = {}
    for key, value in timm_model.state_dict().items():
        key = re.sub(
            r"layers\.(\d+)\.downsample",
            lambda found: f"layers.{int(found[1]) - 1}.downsample",
            key,
        )
        weights[key.replace("head.fc.", "head.")] = value
    for name, module in timm_model.named_modules():
        if isinstance(module, timm_swin.WindowAttention):
            weights[f"{name}.relative_position_index"] = module.relative_position_index
        if getattr(module, "attn_mask", None) is not None:
            weights[f"{name}.attn_mask"] = module.attn_mask
    return weights

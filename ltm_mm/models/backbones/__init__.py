"""Backbones with learnable token merging, one architecture family per file."""

from .efficientvit import LTMEfficientViT
from .mobilevit import LTMMobileViT
from .swin import LTMSwin
from .vit import LTMViT

__all__ = ["LTMEfficientViT", "LTMMobileViT", "LTMSwin", "LTMViT"]

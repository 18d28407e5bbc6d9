"""Backbones with learnable token merging, one architecture family per file."""

from .efficientvit import LTMEfficientViT
from .swin import LTMSwin

__all__ = ["LTMEfficientViT", "LTMSwin"]

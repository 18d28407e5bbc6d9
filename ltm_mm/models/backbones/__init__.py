"""Backbones with learnable token merging, one architecture family per file."""

from .swin import LTMSwin

__all__ = ["LTMSwin"]

"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

__all__ = ["LTMEfficientViT", "LTMMobileViT", "LTMSwin", "LTMViT"]

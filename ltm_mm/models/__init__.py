"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from .ssd_head import SSDHead

__all__ = ["LTMEfficientViT", "LTMMobileViT", "LTMSwin", "LTMViT", "SSDHead"]

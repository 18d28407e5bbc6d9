"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from .losses import DenseIBLoss
from .ssd_head import SSDHead

__all__ = ["DenseIBLoss", "LTMEfficientViT", "LTMMobileViT", "LTMSwin", "LTMViT", "SSDHead"]

"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMEfficientViT, LTMSwin
from .losses import DenseIBLoss

__all__ = ["DenseIBLoss", "LTMEfficientViT", "LTMSwin"]

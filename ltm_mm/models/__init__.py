"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMEfficientViT, LTMSwin

__all__ = ["LTMEfficientViT", "LTMSwin"]

"""Everything that ``ltm_mm.registry.MODELS`` holds."""

from .backbones import LTMSwin

__all__ = ["LTMSwin"]

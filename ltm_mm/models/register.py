"""What ``ltm_mm.registry.MODELS`` holds; the registry imports this at its first look-up.

The classes do not register themselves, because timm's users have no mmengine.
"""

from ..registry import MODELS
from .backbones import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from .losses import DenseIBLoss
from .ssd_head import SSDHead

for _model in (LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT, DenseIBLoss, SSDHead):
    MODELS.register_module(module=_model)

"""What ``ltm_mm.registry.MODELS`` holds; the registry imports this at its first look-up.

The classes do not register themselves, because timm's users have no mmengine.
"""

from ..families import FAMILIES, load
from ..registry import MODELS
from .losses import DenseIBLoss
from .ssd_head import SSDHead

for _model in (*(load(family.code) for family in FAMILIES.values()), DenseIBLoss, SSDHead):
    MODELS.register_module(module=_model)

"""Backbones and losses, imported when first asked for: not all of them need OpenMMLab."""

from typing import Any

from ..families import FAMILIES, load

_NAMED = {
    "DenseIBLoss": "ltm_mm.models.losses:DenseIBLoss",
    "SSDHead": "ltm_mm.models.ssd_head:SSDHead",
    **{family.backbone: family.code for family in FAMILIES.values()},
}
__all__ = sorted(_NAMED)


def __getattr__(name: str) -> Any:
    if name not in _NAMED:
        raise AttributeError(f"module 'ltm_mm.models' has no attribute {name!r}")
    return load(_NAMED[name])

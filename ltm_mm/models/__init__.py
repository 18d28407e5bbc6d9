"""Backbones and losses, imported when first asked for: not all of them need OpenMMLab."""

from importlib import import_module

__all__ = ["DenseIBLoss", "LTMEfficientViT", "LTMMobileViT", "LTMSwin", "LTMViT", "SSDHead"]

_PLACES = {"DenseIBLoss": ".losses", "SSDHead": ".ssd_head"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'ltm_mm.models' has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, ".backbones"), __name__), name)

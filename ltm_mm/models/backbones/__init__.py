"""The backbones, one family per file; their classes are imported on first use."""

from ...families import FAMILIES, load

__all__ = [family.backbone for family in FAMILIES.values()]


def __getattr__(name: str) -> type:
    for family in FAMILIES.values():
        if family.backbone == name:
            return load(family.code)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

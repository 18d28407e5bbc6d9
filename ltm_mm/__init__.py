"""ltm_mm: learnable token merging (LTM) for detection and segmentation.

Where mmcv has no compiled ops, importing this lets :mod:`ltm_mm.compat` provide them; in a checkout
that is not installed, import it before mmdet and mmseg. No package of OpenMMLab is needed for
:func:`apply` on timm models and for :mod:`ltm_mm.timm_models`.
"""

from typing import Any

from ltm_mm.compat import install_fallback

__version__ = "0.2.0"

install_fallback()


def __getattr__(name: str) -> Any:
    """The package's functions, imported (with torch) when first asked for."""
    if name in ("apply", "remove"):
        from ltm_mm import adapters

        return getattr(adapters, name)
    if name in ("learn", "Learned"):
        from ltm_mm import learning

        return getattr(learning, name)
    if name == "fidelity":
        from ltm_mm.analysis.fidelity.compare import fidelity

        return fidelity
    if name == "export":
        import ltm_mm.export

        return ltm_mm.export  # which can be called
    raise AttributeError(f"module 'ltm_mm' has no attribute {name!r}")

"""ltm_mm: learnable token merging (LTM) for detection and segmentation.

If mmcv has no compiled ops, importing this package provides them (:mod:`ltm_mm.compat`); in a
checkout that is not installed, import it before mmdet and mmseg. :func:`apply` on timm models and
:mod:`ltm_mm.timm_models` need no OpenMMLab package.
"""

from typing import Any

from ltm_mm.compat import install_fallback

__version__ = "0.2.0"

install_fallback()


def __getattr__(name: str) -> Any:
    """The package's functions, imported (with torch) on first use."""
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

"""ltm_mm: learnable token merging (LTM) for detection and segmentation.

Import it before mmdet or mmseg: where mmcv has no compiled ops, that puts the
stand-in of :mod:`ltm_mm.compat` in their place.
"""

from ltm_mm.compat import open_door

__version__ = "0.1.0"

open_door()


def __getattr__(name: str) -> object:
    """``apply``, ``remove`` and ``fidelity``, imported (with torch) when first asked for."""
    if name in ("apply", "remove"):
        from ltm_mm.models import apply as module

        return getattr(module, name)
    if name == "fidelity":
        from ltm_mm.analysis.fidelity_run import fidelity

        return fidelity
    raise AttributeError(f"module 'ltm_mm' has no attribute {name!r}")

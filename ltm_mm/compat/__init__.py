"""mmcv without a compiler: the import hook that finds the fallback for its ops.

mmcv's op modules ask ``mmcv._ext``, a compiled extension, for their functions when they are
imported. A finder at the *end* of ``sys.meta_path`` is asked for ``mmcv._ext`` only after the
real one was not found, so compiled ops always win, and nothing is imported until mmcv asks.

mmdet and mmseg look for mmcv's ops once, while they are imported, so the finder has to be there
before: ``import ltm_mm`` puts it there, and so do our tools. ``python -m ltm_mm.compat install``
does it for every program of an environment.
"""

import sys
import warnings
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

__all__ = ["find_fallback", "install_fallback"]

# Modules that survive the failing import of mmcv's ops and remember it.
_REMEMBER = ("mmdet.structures.mask.structures", "mmseg.models.losses.focal_loss")


def find_fallback() -> ModuleSpec | None:
    """Where ``mmcv._ext`` is loaded from if it was not compiled; the installed file calls this."""
    return spec_from_file_location("mmcv._ext", Path(__file__).with_name("ext.py"))


class _Finder:
    """What ``sys.meta_path`` holds: answers for ``mmcv._ext`` alone."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return find_fallback() if name == "mmcv._ext" else None


def install_fallback() -> None:
    """Let the fallback provide ``mmcv._ext`` where mmcv was installed without it.

    Warns, in one line, when mmdet or mmseg were imported before and have already
    done without mmcv's ops. A second call changes nothing.
    """
    if _Finder in sys.meta_path:
        return
    sys.meta_path.append(_Finder)
    too_early = [name for name in _REMEMBER if name in sys.modules]
    if too_early and "mmcv.ops" not in sys.modules:
        warnings.warn(
            f"{too_early[0].split('.')[0]} was imported before ltm_mm and found mmcv without its "
            "ops, so it will fail where it needs them: put `import ltm_mm` first "
            "(or run `python -m ltm_mm.compat install` once, or build the ops with `make ops`)",
            stacklevel=3,
        )

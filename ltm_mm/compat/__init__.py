"""mmcv without a compiler (ours): the door through which the stand-in comes in.

mmcv's op modules ask ``mmcv._ext``, a compiled extension, for their functions
when they are imported. :func:`open_door` puts a finder at the *end* of
``sys.meta_path``: it is asked for ``mmcv._ext`` only after the real one was not
found, so the compiled ops always win, and nothing is imported until mmcv asks.
``import ltm_mm`` opens the door; it must come before mmdet and mmseg, because
those look for mmcv's ops once, while they are imported.

The same finder says what to do where mmengine or mmcv are missing altogether.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["open_door"]

# Modules that survive the failing import of mmcv's ops and remember it.
_KEEP_FALLBACKS = ("mmdet.structures.mask.structures", "mmseg.models.losses.focal_loss")


class _LastFinder(MetaPathFinder):
    """Asked for what nobody else found: answers for ``mmcv._ext`` with ``ext.py``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "mmcv._ext":
            return spec_from_file_location(fullname, Path(__file__).with_name("ext.py"))
        if fullname in ("mmengine", "mmcv"):
            raise ModuleNotFoundError(
                f"{fullname} is not installed, and of ltm_mm only `ops` and `layers` work without "
                "it: run `pip install -r requirements/mminstall.txt` in ltm_mm's checkout",
                name=fullname,
            )
        return None


_FINDER = _LastFinder()


def open_door() -> None:
    """Let the stand-in serve ``mmcv._ext`` where mmcv was installed without it.

    Warns, in one line, when mmdet or mmseg were imported before and have already
    done without mmcv's ops. A second call changes nothing.
    """
    if _FINDER in sys.meta_path:
        return
    sys.meta_path.append(_FINDER)
    too_early = [name for name in _KEEP_FALLBACKS if name in sys.modules]
    if too_early and "mmcv.ops" not in sys.modules:
        warnings.warn(
            f"{too_early[0].split('.')[0]} was imported before ltm_mm and found mmcv without its "
            "ops, so it will fail where it needs them: put `import ltm_mm` first "
            "(or build the ops with `make ops`)",
            stacklevel=3,
        )

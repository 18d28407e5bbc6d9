"""mmcv without a compiler (ours): the door through which the stand-in comes in.

mmcv's op modules ask ``mmcv._ext``, a compiled extension, for their functions
when they are imported. :func:`open_door` puts a finder at the *end* of
``sys.meta_path``: it is asked for ``mmcv._ext`` only after the real one was not
found, so the compiled ops always win, and nothing is imported until mmcv asks.
``import ltm_mm`` opens the door; it must come before mmdet and mmseg, because
those look for mmcv's ops once, while they are imported.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["open_door", "require"]

# Modules that survive the failing import of mmcv's ops and remember it.
_KEEP_FALLBACKS = ("mmdet.structures.mask.structures", "mmseg.models.losses.focal_loss")
_OPENMMLAB = ("mmengine", "mmcv", "mmdet", "mmseg")


class _StandInFinder(MetaPathFinder):
    """Answers for ``mmcv._ext``, and for nothing else, with ``ext.py`` beside this file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "mmcv._ext":
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("ext.py"))


_FINDER = _StandInFinder()


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


def require(*names: str) -> None:
    """Raise one clear line for the first of the packages that is not installed.

    Args:
        names: import names, such as ``"mmengine"`` or ``"timm"``.

    Raises:
        ModuleNotFoundError: names the package and the command that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            wanted = "-r requirements/mminstall.txt" if name in _OPENMMLAB else name
            raise ModuleNotFoundError(
                f"{name} is needed here and not installed: run `pip install {wanted}`", name=name
            )

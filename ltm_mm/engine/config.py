"""Load any MM config: a file, or one that an installed package brings."""

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.options import check_option, did_you_mean
from ..errors import UserError, swapped_argument

if TYPE_CHECKING:
    from mmengine.config import Config


def load_config(
    source: str | os.PathLike, cfg_options: Mapping[str, object] | None = None
) -> "Config":
    """Load a config and change options in it.

    Args:
        source: a file, or ``package::path`` for a config that the installed package
            (mmdet, mmseg, mmpretrain, ...) brings.
        cfg_options: dotted key -> value, as from mmengine's ``DictAction``.

    Returns:
        The config; its bases may be files or ``package::path``, too.

    Raises:
        UserError: no such config, it cannot be parsed, or an option names nothing in it.
    """
    if swapped := swapped_argument(source, "config"):
        raise UserError(swapped)
    path = find_config(os.fspath(source))
    from mmengine.config import Config

    try:
        with packages_by_import_name():
            cfg = Config.fromfile(path)
    except UserError:
        raise
    except Exception as error:  # a config is code: anything can go wrong in it
        raise UserError(f"config {path} cannot be read: {_reason(error)}") from error
    return change_config(cfg, cfg_options or {})


def change_config(cfg: "Config", cfg_options: Mapping[str, object]) -> "Config":
    """Change options of a config in place, and return it; see :func:`load_config`."""
    if not cfg_options:
        return cfg
    for key in cfg_options:
        check_option(cfg, key)
    try:
        cfg.merge_from_dict(dict(cfg_options))
    except (KeyError, TypeError) as error:
        raise UserError(f"--cfg-options does not fit the config: {_reason(error)}") from error
    return cfg


class BackboneConfig(dict):
    """A config of nothing but a backbone, where there is no mmengine; keys are attributes, too."""

    filename = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value


def backbone_config(**backbone: object) -> "Config":
    """A config of nothing but a backbone.

    Args:
        backbone: its arguments, ``type`` among them.
    """
    try:
        from mmengine.config import Config
    except ModuleNotFoundError:
        return BackboneConfig(model=BackboneConfig(backbone=BackboneConfig(backbone)))  # type: ignore[return-value]
    return Config(dict(model=dict(backbone=backbone)))


def find_config(source: str) -> Path:
    """Path of a config given as a file or as ``package::path``."""
    package, separator, name = source.rpartition("::")
    if not separator:
        return _existing(Path(source).expanduser(), Path(source).parent)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"config {source}: the package {package!r} is not installed; "
            "pip install 'ltm_mm[mm]' brings mmdet and mmseg, 'ltm_mm[mmpretrain]' mmpretrain"
        )
    home = Path(spec.submodule_search_locations[0])
    # A wheel carries its configs in .mim; a source checkout has them beside the package.
    folders = [f for f in (home / ".mim" / "configs", home.parent / "configs") if f.is_dir()]
    if not folders:
        raise UserError(f"config {source}: the installed {package} brings no configs")
    name = name if Path(name).suffix else f"{name}.py"
    return _existing(folders[0] / name, folders[0], f"{package}::")


def _existing(path: Path, folder: Path, prefix: str = "") -> Path:
    """``path``, or an error that names the nearest files of ``folder``."""
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"config {prefix}{path} is a folder: name a file in it")
    by_name = {p.name: p for p in folder.glob("**/*.py" if prefix else "*.py")}
    near = [by_name[n] for n in difflib.get_close_matches(path.name, by_name, n=3, cutoff=0.7)]
    asked, *names = (prefix + str(p.relative_to(folder) if prefix else p) for p in (path, *near))
    raise UserError(f"config {asked} does not exist{did_you_mean(names)}")


@contextmanager
def packages_by_import_name() -> Iterator[None]:
    """Let ``_base_ = 'mmseg::...'`` find its package whatever its distribution is called.

    mmengine maps an import name to a distribution name and looks for that; mmseg's is
    mmsegmentation upstream and another one with its continuation. A name that is no
    distribution it looks up as an import name, so each name stands for itself here. The
    table is mmengine's own and is put back afterwards.
    """
    from mmengine.config import utils as mmengine_names

    table = mmengine_names.MODULE2PACKAGE
    before = dict(table)
    table.update({name: name for name in table})
    try:
        yield
    finally:
        table.update(before)


def _reason(error: Exception) -> str:
    """An exception's message in one line, with its type where that says more."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if isinstance(error, RecursionError):
        return "one of its _base_ includes itself"
    if isinstance(error, (SyntaxError, OSError, UserError)):
        return text
    return f"{type(error).__name__}: {text}"

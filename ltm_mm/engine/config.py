"""Load any MM config: a file, or one that an installed package brings."""

import difflib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as mmengine_names
from mmengine.runner import Runner

from .errors import UserError

# Read by the tools and by some runners, beside the Runner's own arguments.
TOOL_KEYS = (
    "runner_type",
    "strategy",  # of FlexibleRunner
    "tta_model",
    "tta_pipeline",
    "find_unused_parameters",
    "sync_bn",
    "compile",
    "activation_checkpointing",
    "efficient_conv_bn_eval",
)


def load_config(
    source: str | os.PathLike, cfg_options: Mapping[str, object] | None = None
) -> Config:
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
    path = find_config(os.fspath(source))
    try:
        with packages_by_import_name():
            cfg = Config.fromfile(path)
    except UserError:
        raise
    except Exception as error:  # a config is code: anything can go wrong in it
        raise UserError(f"config {path} cannot be read: {_reason(error)}") from error
    return change_config(cfg, cfg_options or {})


def change_config(cfg: Config, cfg_options: Mapping[str, object]) -> Config:
    """Change options of a config in place, and return it; see :func:`load_config`."""
    for key in cfg_options:
        check_option(cfg, key)
    try:
        cfg.merge_from_dict(dict(cfg_options))
    except (KeyError, TypeError) as error:
        raise UserError(f"--cfg-options does not fit the config: {_reason(error)}") from error
    return cfg


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
    found = {p.name: p for p in folder.glob("**/*.py" if prefix else "*.py")}
    near = [found[n] for n in difflib.get_close_matches(path.name, found, n=3, cutoff=0.7)]
    asked, *names = (prefix + str(p.relative_to(folder) if prefix else p) for p in (path, *near))
    raise UserError(f"config {asked} does not exist{_did_you_mean(names)}")


@contextmanager
def packages_by_import_name() -> Iterator[None]:
    """Let ``_base_ = 'mmseg::...'`` find its package whatever its distribution is called.

    mmengine maps an import name to a distribution name and looks for that; mmseg's is
    mmsegmentation upstream and another one with its continuation. A name that is no
    distribution it looks up as an import name, so each name stands for itself here. The
    table is mmengine's own and is put back afterwards.
    """
    table = mmengine_names.MODULE2PACKAGE
    before = dict(table)
    table.update({name: name for name in table})
    try:
        yield
    finally:
        table.update(before)


def check_option(cfg: Config, key: str) -> None:
    """Refuse an option that would silently change nothing.

    New keys are allowed where a class may take them; a key whose parent does not
    exist, or that is only a variable of the config file, is a mistake.

    Raises:
        UserError: names the key and what was probably meant.
    """
    runner_keys = {*inspect.signature(Runner.__init__).parameters, *TOOL_KEYS}
    first, *rest = key.split(".")
    if first not in runner_keys:
        if first not in cfg:
            near = difflib.get_close_matches(first, {*cfg.keys(), *runner_keys}, n=2)
            raise UserError(
                f"--cfg-options {key}: there is no {first!r} in the config{_did_you_mean(near)}"
            )
        used = [k for k, v in flatten(cfg) if _comes_from(first, cfg[first], k, v)]
        raise UserError(
            f"--cfg-options {key}: {first!r} is a variable of the config file, already used, and "
            f"changing it changes nothing; set what it went into{_list(used)}"
        )
    _walk(cfg.get(first), first, rest, key)


def _walk(node: object, path: str, rest: Sequence[str], key: str) -> None:
    """Follow the parts of an option below its first; see :func:`check_option`."""
    for depth, part in enumerate(rest):
        last = depth == len(rest) - 1
        if isinstance(node, (list, tuple)):
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(
                    f"--cfg-options {key}: {path} is a list of {len(node)}; "
                    f"continue with an index from 0 to {len(node) - 1}"
                )
            node = node[int(part)]
        elif node is None or (isinstance(node, Mapping) and part not in node):
            if last:
                return  # a new key: the class that gets it says whether it takes it
            names = list(node) if isinstance(node, Mapping) else []
            near = difflib.get_close_matches(part, names, n=2, cutoff=0.75)
            if near or len(rest) - depth > 2:
                raise UserError(
                    f"--cfg-options {key}: there is no {part!r} in {path}{_did_you_mean(near)}"
                )
            return
        elif isinstance(node, Mapping):
            node = node[part]
        else:
            raise UserError(
                f"--cfg-options {key}: {path} is {node!r}, which has nothing below it to set"
            )
        path = f"{path}.{part}"


def flatten(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of everything in a config that is not a dict or list."""
    if isinstance(node, Config):
        node = node._cfg_dict
    if isinstance(node, Mapping):
        items: Iterator[tuple[object, object]] = iter(node.items())
    elif isinstance(node, (list, tuple)):
        items = iter(enumerate(node))
    else:
        yield path, node
        return
    for key, value in items:
        yield from flatten(value, f"{path}.{key}" if path else str(key))


def _comes_from(name: str, variable: object, key: str, value: object) -> bool:
    """Whether an entry of a config looks as if it was set from one of its variables."""
    if isinstance(variable, str) and isinstance(value, str):
        return bool(variable) and value.startswith(variable)
    return key.rpartition(".")[2] == name and value == variable


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _list(names: Sequence[str]) -> str:
    runner = set(inspect.signature(Runner.__init__).parameters)
    named = [n for n in names if n.split(".")[0] in runner]
    return f": {', '.join(named[:8])}" if named else ""


def _reason(error: Exception) -> str:
    """An exception's message in one line, with its type where that says more."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if isinstance(error, (SyntaxError, OSError, UserError)):
        return text
    return f"{type(error).__name__}: {text}"

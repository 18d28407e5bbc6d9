"""Options of a config: one that would silently change nothing is refused."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

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


def check_option(cfg: "Config", key: str) -> None:
    """Refuse an option that would silently change nothing.

    New keys are allowed where a class may take them; a key whose parent does not
    exist, or that is only a variable of the config file, is a mistake.

    Raises:
        UserError: names the key and what was probably meant.
    """
    runner_keys = {*_runner_arguments(), *TOOL_KEYS}
    first, *rest = key.split(".")
    if first not in runner_keys:
        if first not in cfg:
            near = difflib.get_close_matches(first, {*cfg.keys(), *runner_keys}, n=2)
            raise UserError(
                f"--cfg-options {key}: there is no {first!r} in the config{did_you_mean(near)}"
            )
        used = [k for k, v in flatten(cfg) if _set_from_variable(first, cfg[first], k, v)]
        raise UserError(
            f"--cfg-options {key}: {first!r} is a variable of the config file, already used, and "
            f"changing it changes nothing; set what it went into{_used(used)}"
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
                    f"--cfg-options {key}: there is no {part!r} in {path}{did_you_mean(near)}"
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
    node = getattr(node, "_cfg_dict", node)  # of a Config
    if isinstance(node, Mapping):
        items: Iterator[tuple[object, object]] = iter(node.items())
    elif isinstance(node, (list, tuple)):
        items = iter(enumerate(node))
    else:
        yield path, node
        return
    for key, value in items:
        yield from flatten(value, f"{path}.{key}" if path else str(key))


def _set_from_variable(name: str, variable: object, key: str, value: object) -> bool:
    """Whether an entry of a config looks as if it was set from one of its variables."""
    if isinstance(variable, str) and isinstance(value, str):
        return bool(variable) and value.startswith(variable)
    return key.rpartition(".")[2] == name and value == variable


def did_you_mean(names: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _used(names: Sequence[str]) -> str:
    runner = _runner_arguments()
    named = [n for n in names if n.split(".")[0] in runner]
    return f": {', '.join(named[:8])}" if named else ""


def _runner_arguments() -> set[str]:
    from mmengine.runner import Runner

    return set(inspect.signature(Runner.__init__).parameters)


SMALLEST_SIDE = 32  # pixels of one token of a last stage; below there is nothing to measure


def check_counts(options: Mapping[str, int | Sequence[int] | None]) -> None:
    """Raise a UserError for an option of the command line that has a number below what it takes.

    That is 1, of ``--size`` and ``--crop`` ``SMALLEST_SIDE``.
    """
    for option, value in options.items():
        least = SMALLEST_SIDE if option in ("--size", "--crop") else 1
        numbers = [least] if value is None else value if isinstance(value, Sequence) else [value]
        if any(number < least for number in numbers):
            raise UserError(f"{option} must be {least} or more, got {' '.join(map(str, numbers))}")

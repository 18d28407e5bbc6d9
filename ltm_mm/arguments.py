"""Command-line options that several tools share.

Nothing heavy is imported here: ``--help`` is fast and works without OpenMMLab.
"""

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any

from . import __version__
from .errors import clean_errors
from .families import NAMED, load

KEEP = (
    "none, light, balanced, fast, fastest (Swin only, for learned models), paper, tokens per "
    "window (25) or a share of them (0.5), or one entry per stage such as "
    "'(None, None, (None, 25, 25, 25, 25, 25), None)'"
)
CONFIG = "a config file, or a config of an installed package: mmdet::PATH, mmseg::PATH"
# For tools that measure or export.
CONFIG_OR_BACKBONE = f"{CONFIG}, or one of our backbones: {NAMED}"
CHECKPOINT_OR_EXPORTED = "checkpoint, plain or merging, or an exported .onnx, .xml or .pt2 file"


class ConfigOptions(argparse.Action):
    """mmengine's ``KEY=VALUE ...``, with a one-line error for anything else."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the pairs to earlier ones of the command line."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in [values] if isinstance(values, str) else values or ():
            key, equals, value = pair.partition("=")
            if not (key and equals and value):
                parser.error(f"{option_string}: {pair!r} is not KEY=VALUE (no spaces around =)")
            try:
                options[key] = parse_value(value)
            except ModuleNotFoundError:
                parser.error(f"{option_string} needs mmengine: pip install 'ltm_mm[mm]'")
            except (AssertionError, ValueError) as error:
                parser.error(f"{option_string} {pair}: {error}")
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> object:
    """Parse a value as mmengine does, but keep spaces in paths and names.

    Args:
        text: a number, True, False, None, a text, or several of them: ``a,b``, ``[a, b]``,
            ``(1, 2)``.

    Raises:
        AssertionError: if brackets do not match.
        ModuleNotFoundError: without mmengine.
    """
    from mmengine.config import DictAction

    text = text.strip()
    if os.path.exists(text) or ("," not in text and not text.startswith(("(", "["))):
        return DictAction._parse_int_float_bool(text.strip("'\""))
    tight = re.sub(r"\s*([,()\[\]])\s*", r"\1", text)
    return _with_spaces(DictAction._parse_iterable(tight.replace(" ", SPACE)))


SPACE = "\0"


def _with_spaces(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)(map(_with_spaces, value))
    return value.replace(SPACE, " ") if isinstance(value, str) else value


SHARED: dict[str, dict] = {
    "config": dict(help=CONFIG),
    "--ltm": dict(
        metavar="KEEP",
        help=f"replace the backbone by the token-merging one with this plan: {KEEP}",
    ),
    "--detail": dict(metavar="FILE", help="detail learned by tools/learn.py for these weights"),
    "--cfg-options": dict(
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override config options, e.g. model.backbone.keep=fast",
    ),
    "--trust-checkpoint": dict(
        action="store_true",
        help="also load checkpoints that hold more than weights, which can run code from the file",
    ),
    "--device": dict(default="cpu", help="cpu or cuda [cpu]"),
    "--threads": dict(type=int, help="CPU threads [as PyTorch chooses]"),
    "--rounds": dict(type=int, default=5, help="timed rounds [%(default)s]"),
    "--cpu-time": dict(
        action="store_true",
        help="measure CPU seconds, not wall time, for a shared machine; with --threads 1",
    ),
    "--num-photos": dict(type=int, metavar="N", help="number of photos to use [%(default)s]"),
    "--score-thr": dict(type=float, default=0.3, help="minimum score of drawn objects [0.3]"),
    "--out": dict(metavar="DIR", help="folder for JSON and picture [%(default)s]"),
    "--launcher": dict(choices=["none", "pytorch", "slurm", "mpi"], default="none"),
    # torchrun sets it in the environment.
    "--local_rank": dict(type=int, help=argparse.SUPPRESS, default=argparse.SUPPRESS),
    "--debug": dict(action="store_true", help="show the traceback of an error and the full log"),
}


class Parser(argparse.ArgumentParser):
    """A tool's parser, with the options shared by all tools.

    Args:
        what: what the tool does, in one line.
    """

    def __init__(self, what: str) -> None:
        super().__init__(description=f"{what} (ltm_mm {__version__})")
        self.add("--debug")

    def add(self, *names: str, **options: object) -> None:
        """Add an argument; options not given here come from ``SHARED``."""
        self.add_argument(*names, **{**SHARED.get(names[0], {}), **options})  # type: ignore[arg-type]


def run_tool(args: argparse.Namespace, function: str, *then: str) -> Any:
    """Run a tool; invalid input ends it with a one-line error.

    Args:
        args: its arguments, passed to the function by name.
        function: ``"package.module:name"``, imported here.
        then: functions to call afterwards, without arguments.
    """
    options = vars(args)
    options.pop("local_rank", None)
    with clean_errors(debug=options.pop("debug")):
        result = load(function)(**options)
        for name in then:
            load(name)()
    return result

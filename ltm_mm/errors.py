"""A mistake in the input ends in one clear line.

Everything the tools do runs inside :func:`clean_errors`. Our own code raises
:class:`UserError` or a ValueError with a full sentence; what mmengine, mmdet, mmseg and
pycocotools raise is translated by :func:`explain`, rule by rule. An exception that no
rule knows is a defect and keeps its traceback.
"""

import difflib
import errno
import inspect
import io
import json
import os
import re
import sys
import traceback
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from .families import FAMILIES
from .log import quiet_log

NO_INTERNET = (
    "without internet give a local file, --cfg-options model.backbone.init_cfg.checkpoint=FILE, "
    "or start untrained with --cfg-options model.backbone.init_cfg=None"
)


class UserError(Exception):
    """A mistake in the input. Its message is one line: what is wrong and what to do."""


def preview(items: Sequence[object], count: int = 5) -> str:
    """The first items, for a message."""
    return ", ".join(map(str, items[:count])) + (", ..." if len(items) > count else "")


@contextmanager
def clean_errors(debug: bool = False) -> Iterator[None]:
    """End the program with one line and a non-zero exit status if the input is wrong.

    Args:
        debug: keep the traceback, and print all of the log (see :mod:`.log`); also switched on by
            the variable ``LTM_DEBUG``.

    Raises:
        SystemExit: for a known mistake (1) and for Ctrl-C (130).
    """
    debug = debug or bool(os.environ.get("LTM_DEBUG"))
    rank = int(os.environ.get("RANK", 0))
    try:
        with quiet_log(debug):
            yield
    except (KeyboardInterrupt, Exception) as error:
        line = explain(error)
        # PyTorch's writer ends in an error of its own where a save is interrupted.
        if any(isinstance(link, KeyboardInterrupt) for link in chain(error)) and not debug:
            print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        if debug or line is None:
            raise
        where = f" (rank {rank})" if rank else ""
        print(f"error{where}: {line}", file=sys.stderr, flush=True)
        sys.exit(1)


@contextmanager
def naming(file: str | None) -> Iterator[None]:
    """Turn what a checkpoint's reader says into a UserError that names the file.

    Args:
        file: as the user gave it; None: there is none.

    Raises:
        UserError: for a ValueError or OSError within.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        named = "" if str(file) in str(error) else f"{file}: "
        raise UserError(f"{named}{error}") from error


def explain(error: BaseException) -> str | None:
    """One line for a known mistake, None for anything else.

    Args:
        error: what was raised; what it was raised from is examined after it.
    """
    for link in chain(error):
        for types, rule in RULES:
            if isinstance(link, types) and (line := rule(link)):
                return " ".join(line.split())
    return None


def frames(error: BaseException) -> list[FrameType]:
    """What was running when an exception was raised, outermost first."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what caused it, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def message(error: BaseException) -> str:
    """The message proper, also of an exception that came out of a data loader's worker."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    return text


def _missing_file(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None)
    return f"{name}: {reason}" if name and reason else message(error)


def _os_error(error: BaseException) -> str | None:
    """Disk full and the like; OSErrors without a number are left to other rules."""
    reason = getattr(error, "strerror", None)
    name = getattr(error, "filename", None)
    if name is None and getattr(error, "errno", None) in UNWRITABLE:
        name = _being_written(error)
    return (f"{name}: {reason}" if name else reason) if reason else None


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
PATHS = ("filepath", "filename", "file", "path", "fname", "fp", "f", "out", "out_file", "self")


def _being_written(error: BaseException) -> str | None:
    """The file that was written when an error was raised, which writers leave out."""
    for frame in reversed(frames(error)):
        for value in frame.f_locals.values():
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str) and not name.startswith("<"):
                return name
        for key in PATHS:
            value = frame.f_locals.get(key)
            if isinstance(value, str | os.PathLike):
                return os.fspath(value)
    return None


def _torch_writer(error: BaseException) -> str | None:
    """PyTorch's writer of files, which does not say that the disk is full."""
    if not re.search(r"PytorchStreamWriter|unexpected pos \d+ vs", message(error)):
        return None
    return f"{_being_written(error) or 'a checkpoint'} cannot be written: is the disk full?"


CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".onnx", ".xml", ".pt2")
CONFIGS = (".py", ".json", ".yaml", ".yml")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def swapped_argument(file: str | os.PathLike, wanted: str) -> str | None:
    """What a file is by its name, in words, where another kind is wanted: swapped arguments.

    Args:
        file: as given.
        wanted: 'config', 'checkpoint' or 'photo'.
    """
    kinds = {"config": CONFIGS, "checkpoint": CHECKPOINTS, "photo": PICTURES}
    suffix = os.path.splitext(file)[1].lower()
    given = next((kind for kind, suffixes in kinds.items() if suffix in suffixes), wanted)
    if given == wanted:
        return None
    return f"{file} is a {given} by its name, where a {wanted} is wanted: are arguments swapped?"


def _connection(error: BaseException) -> str | None:
    return f"{message(error)}; {NO_INTERNET}"


def _hub(error: BaseException) -> str | None:
    """What the Hugging Face client raises when it cannot reach the hub."""
    package = type(error).__module__.partition(".")[0]
    if package not in ("huggingface_hub", "httpx", "requests"):
        return None
    return f"pretrained weights cannot be downloaded ({message(error)}); {NO_INTERNET}"


def _not_installed(error: BaseException) -> str | None:
    package = str(getattr(error, "name", "")).partition(".")[0]
    if package not in ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain"):
        return None
    extra = "mmpretrain" if package == "mmpretrain" else "mm"
    return f"{package} is not installed: pip install 'ltm_mm[{extra}]'"


def _json(error: BaseException) -> str | None:
    return f"an annotation file is not valid JSON ({error}): is it complete?"


def _memory(error: BaseException) -> str | None:
    if type(error).__name__ != "OutOfMemoryError":  # of torch.cuda, which is not imported here
        return None
    return (
        "the GPU's memory is full: lower train_dataloader.batch_size or the image size, "
        "or use --amp"
    )


def _single_image(error: BaseException) -> str | None:
    """Batch normalisation of a 1 x 1 map (a pooled branch of mmseg's heads) of one image."""
    if "Expected more than 1 value per channel when training" not in message(error):
        return None
    return (
        "batch normalisation has one value per channel here: set "
        "--cfg-options train_dataloader.batch_size to 2 or more"
    )


def _channels(error: BaseException) -> str | None:
    """A convolution that gets another number of channels than it is made for."""
    match = re.search(r"to have (\d+) channels, but got (\d+) channels", message(error))
    if not match:
        return None
    return (
        f"a layer expects {match[1]} channels and gets {match[2]}: in_channels of the neck, a head "
        "or the backbone in the config does not fit what comes before it"
    )


def _save_best(error: BaseException) -> str | None:
    """A metric that the checkpoint hook is to watch and that is not measured."""
    for frame in frames(error):
        metrics = frame.f_locals.get("metrics")
        saving = frame.f_code.co_name == "_save_best_checkpoint"
        if saving and isinstance(metrics, dict) and message(error) not in metrics:
            return (
                f"default_hooks.checkpoint.save_best {message(error)!r} is not among the "
                f"metrics: {', '.join(metrics)}; --resume goes on from the last checkpoint"
            )
    return None


def _unregistered(error: BaseException) -> str | None:
    """A ``type`` that no registry knows."""
    match = re.match(r"([\w.]+) is not in the ([\w.]+)::([\w ]+) registry", message(error))
    return no_such_type(match[1], match[3]) if match else None


def no_such_type(name: str, kind: str) -> str:
    """The line for an unknown ``type``, with the nearest ones that are known."""
    ours = [family.type for family in FAMILIES.values()] if kind == "model" else []
    others = [known for known in dict.fromkeys([*ours, *_known(kind)]) if known != name]
    near = difflib.get_close_matches(name, others, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"type {name!r}: no {kind} of that name is registered{hint}"


def _known(kind: str) -> Iterator[str]:
    """Names in the registries of one kind, with their scope, over all scopes."""
    from mmengine.registry import Registry
    from mmengine.registry import root as mmengine_registries

    roots = [r for r in vars(mmengine_registries).values() if isinstance(r, Registry)]
    for registry in (r for r in roots if r.name == kind):
        yield from registry.module_dict
        for scope, child in registry.children.items():
            yield from child.module_dict
            yield from (f"{scope}.{name}" for name in child.module_dict)


def _unknown_keyword(error: BaseException) -> str | None:
    """A config key that the class does not take, with the ones that it does take."""
    match = re.search(r"got an unexpected keyword argument '(\w+)'", message(error))
    cls = _class_being_built(error)
    if not match or cls is None:
        return None
    known = _keywords(cls)
    near = difflib.get_close_matches(match[1], known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(known)}"
    return f"{cls.__name__} takes no {match[1]!r}: {hint}"


def _keywords(cls: type) -> list[str]:
    """Keywords of a class, and of its bases as far as ``**kwargs`` passes them on."""
    names: list[str] = []
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _while_building(error: BaseException) -> str | None:
    """Anything that a class named in the config says against its arguments."""
    cls = _class_being_built(error)
    text = message(error) or _last_line(error) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"has no {text!r}" if re.fullmatch(r"[\w.]+", text) else text
    if cls is None:
        return None
    ours = cls.__module__.startswith("ltm_mm.")  # which says all there is to say
    return f"{cls.__name__}: {text}" + ("" if ours else " (--debug shows where)")


def _of_the_runner(error: BaseException) -> str | None:
    """What mmengine's runner says, while it is built, against an entry: a text for a dict, say."""
    running = [(f.f_globals.get("__name__"), f.f_code.co_name) for f in frames(error)]
    here = "mmengine.runner.runner"
    if (here, "__init__") not in running or running[-1][0] != here:
        return None
    return f"{message(error)} (--debug shows where)"


def _last_line(error: BaseException) -> str | None:
    """The line of code that raised: what an assertion without words says."""
    lines = traceback.extract_tb(error.__traceback__)
    return lines[-1].line if lines and isinstance(error, AssertionError) else None


def _class_being_built(error: BaseException) -> type | None:
    """The innermost class that a registry was building when the error was raised."""
    builders = [f.f_locals for f in frames(error) if f.f_code.co_name == "build_from_cfg"]
    built = [names["obj_cls"] for names in builders if names.get("obj_cls")]
    return built[-1] if built and inspect.isclass(built[-1]) else None


Rule = Callable[[BaseException], str | None]
# Tried from top to bottom on each exception of the chain.
RULES: tuple[tuple[tuple[type[BaseException], ...], Rule], ...] = (
    ((UserError,), message),
    ((RuntimeError,), _memory),
    ((Exception,), _hub),
    ((urllib.error.URLError, ConnectionError), _connection),
    ((FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError), _missing_file),
    ((OSError,), _os_error),
    ((RuntimeError,), _torch_writer),
    ((json.JSONDecodeError,), _json),
    ((ModuleNotFoundError,), _not_installed),
    ((ImportError,), message),
    ((ValueError,), _single_image),
    ((RuntimeError,), _channels),
    ((KeyError,), _save_best),
    ((KeyError,), _unregistered),
    ((TypeError,), _unknown_keyword),
    (
        (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            AssertionError,
            RuntimeError,
        ),
        _while_building,
    ),
    ((TypeError, ValueError), _of_the_runner),
)

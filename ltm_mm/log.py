"""What the tools print: the lines about data, model, progress and results, without the rest (ours).

The log file in the work dir keeps everything, and ``--debug`` prints everything.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType

# Beginnings of lines of other packages. What says that something is wrong is not among them.
NOISE = (
    "Config:\n",
    "\n" + "-" * 20,  # the environment
    "Hooks will be executed in the following order",
    "paramwise_options -- ",
    "Distributed training is not used, all SyncBatchNorm",
    "Using env variable ",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "The prefix is not set in metric class",
    "Exp name: ",
    "Checkpoints will be saved to ",
    "Saving checkpoint at ",
    "The previous best checkpoint ",
    "Evaluating ",
    "bbox_mAP_copypaste: ",
    "segm_mAP_copypaste: ",
    "Could not import OneDL",
    "loading annotations into memory",
    "Done (t=",
    "DONE (t=",
    "creating index...",
    "index created!",
    "Loading and preparing results...",
    "Running per image evaluation...",
    "Evaluate annotation type",
    "Accumulating evaluation results...",
)
PRINTERS = ("mmengine.logging.logger", "pycocotools.coco", "pycocotools.cocoeval")


@contextmanager
def quiet_log(debug: bool = False) -> Iterator[None]:
    """Keep noise of other packages from the console, within.

    Args:
        debug: let everything through.
    """
    if debug:
        yield
        return
    with ExitStack() as ends, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="ltm_mm")
        for module in _installed(PRINTERS):
            vars(module)["print"] = print_unless_noise
            ends.callback(vars(module).pop, "print", None)
        _filter_consoles(ends)
        yield


def is_noise(message: str) -> bool:
    """Whether a line says nothing about data, model, progress or results."""
    return message.startswith(NOISE)


def print_unless_noise(*values: object, **options: object) -> None:
    """``print`` without the lines that are noise."""
    if not (values and is_noise(str(values[0]))):
        print(*values, **options)  # type: ignore[call-overload]


def _installed(names: Sequence[str]) -> Iterator[ModuleType]:
    for name in names:
        try:
            yield import_module(name)
        except ImportError:
            continue


def _filter_consoles(ends: ExitStack) -> None:
    """Have mmengine's loggers, each with handlers of its own, write noise into files only."""
    if "mmengine.logging.logger" not in sys.modules:
        return
    logger = sys.modules["mmengine.logging.logger"].MMLogger
    original: Callable = logger.callHandlers

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if not is_noise(record.getMessage()):
            original(self, record)
            return
        for handler in self.handlers:
            if isinstance(handler, logging.FileHandler) and record.levelno >= handler.level:
                handler.handle(record)

    logger.callHandlers = call_handlers
    ends.callback(setattr, logger, "callHandlers", original)

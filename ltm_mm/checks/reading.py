"""Name the file that a pipeline's loading step cannot read; skip it while training."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import Compose
from mmengine.logging import print_log
from PIL import Image

from ..errors import UserError, frames, message, preview
from .randomness import preserve_rng_state

# After so many images in a row that cannot be read, it is not about single images.
MAX_UNREADABLE = 20
Check = Callable[[dict], str | None]
TRIED = 5  # images that a pipeline is tried with


def guard(
    dataset: Any,
    skip: bool,
    record: str | None = None,
    check: Check | None = None,
    path: str = "the data set",
) -> None:
    """Put a :class:`ReadGuard` before each step that reads a file; see :class:`Guarded`.

    Args:
        dataset: as built.
        skip: pass over images that cannot be read.
        record: file that the names of such images are written to.
        check: of label maps, see :class:`ReadGuard`.
        path: dotted key of the data set in the config.
    """
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    for index, step in enumerate(steps):
        name, place = type(step).__name__, f"{path}.pipeline.{index}"
        if name.startswith("LoadImage"):
            steps[index] = ReadGuard(step, "img_path", skip, _other_size, record, place)
        elif name.startswith("LoadAnnotations") and getattr(step, "with_seg", False):
            steps[index] = ReadGuard(step, "seg_map_path", False, check, place=place)
        elif name.startswith("LoadAnnotations"):  # masks that cannot be decoded, for example
            steps[index] = ReadGuard(step, "img_path", False, place=place)
    if steps:
        dataset.pipeline = Guarded(steps, skip, path)


class Guarded(Compose):
    """A pipeline that names step and file where it fails; while training it passes over them.

    A photo of 3000 x 4 pixels, say, of which resizing leaves nothing. As long as no image went
    through, it is about the step, and that is an error.

    Args:
        steps: of the pipeline, the reading ones with their :class:`ReadGuard`.
        skip: pass over images that a step cannot take.
        path: dotted key of the data set in the config.
    """

    def __init__(self, steps: list[Callable[[dict], dict | None]], skip: bool, path: str) -> None:
        self.transforms = steps
        self.skip = skip
        self.path = path
        self.worked = False
        self.in_a_row = 0

    def __call__(self, data: dict) -> dict | None:
        """The last step's results, or None for an image to be skipped."""
        file = str(data.get("img_path") or "")
        steps: Sequence[Any] = self.transforms
        loader = next((s for s in steps if getattr(s, "key", None) == "img_path"), None)
        for t in steps:
            try:
                data = t(data)
            except (MemoryError, UserError):
                raise
            except Exception as error:
                why = f"{type(getattr(t, 'step', t)).__name__}: {_words(error)}"
                if self.skip and not self.worked:
                    raise
                self.in_a_row += 1
                if not self.skip or loader is None or self.in_a_row >= MAX_UNREADABLE:
                    raise UserError(
                        f"{self.path}.pipeline: {why}, of {file} (--debug shows where)"
                    ) from error
                loader.leave_out(file, f"cannot be used ({why})")
                return None
            if data is None:
                return None
        self.worked, self.in_a_row = True, 0
        return data


class ReadGuard:
    """Answers for the files that a pipeline's loading step cannot read.

    Args:
        step: the loading step.
        key: of the path in the results.
        skip: return None (the data set then takes another image) and log the file, or
            raise a UserError that names it.
        check: what is wrong with the step's results, if anything.
        record: file that the names of skipped images are appended to, of all processes.
        place: of the step in the config.
    """

    def __init__(
        self,
        step: Callable[[dict], dict | None],
        key: str,
        skip: bool,
        check: Check | None = None,
        record: str | None = None,
        place: str = "the pipeline",
    ) -> None:
        self.place = place
        self.step = step
        self.key = key
        self.skip = skip
        self.check = check
        self.record = record
        self.in_a_row = 0
        self.files: set[str] = set()  # unreadable ones seen by this process

    def __call__(self, results: dict) -> dict | None:
        """The step's results, or None for an image to be skipped."""
        try:
            loaded = self.step(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            file = str(results.get(self.key) or "")
            if not file:
                raise
            if not _unreadable(file, error):
                name = f"{self.place} ({type(self.step).__name__})"
                raise UserError(f"{name} cannot load {file}: {_words(error)}") from error
            if not self.skip:
                raise UserError(
                    f"{file} {_file_fault(file, error)}: replace it, or take it out of the data "
                    "set (without it the result would not be that of the data set)"
                ) from error
            self._skip(file, _file_fault(file, error), error)
            return None
        if self.check and loaded and (why := self.check(loaded)):
            if not self.skip:
                raise UserError(f"{results[self.key]} {why}")
            self._skip(str(results[self.key]), why)
            return None
        self.in_a_row = 0
        return loaded

    def _skip(self, file: str, why: str, error: Exception | None = None) -> None:
        self.in_a_row += 1
        if self.in_a_row >= MAX_UNREADABLE:
            raise UserError(
                f"{self.in_a_row} images in a row cannot be used, the last one is {file} ({why})"
            ) from error
        self.leave_out(file, why)

    def leave_out(self, file: str, why: str) -> None:
        """Log an image that is skipped, and keep its name."""
        if file not in self.files:
            self.files.add(file)
            if self.record:
                with open(self.record, "a") as record:
                    record.write(file + "\n")
            # ERROR, because ranks other than the first log nothing below it.
            print_log(
                f"{file} {why}: skipped, another image takes its place "
                f"({len(self.files)} skipped so far)",
                logger="current",
                level=logging.ERROR,
            )

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "step":
            raise AttributeError(name)
        return getattr(self.step, name)

    def __repr__(self) -> str:
        return repr(self.step)


def _other_size(results: dict) -> str | None:
    """What is wrong with an image of another size than its annotation file says: its boxes."""
    size, said = tuple(results["img"].shape[:2]), (results.get("height"), results.get("width"))
    if None in said or size == said:
        return None
    return (
        f"is of {size[0]} x {size[1]} pixels (height x width) as it is loaded, its annotation file "
        f"says {said[0]} x {said[1]}, so its boxes would not fit"
    )


def _unreadable(file: str, error: Exception) -> bool:
    """Whether an error is about the file, and not about what a step makes of it."""
    if isinstance(error, OSError) or not os.path.isfile(file) or not os.path.getsize(file):
        return True
    try:
        with Image.open(file) as picture:
            picture.load()
        return False
    except (OSError, SyntaxError, ValueError):
        return cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED) is None


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):  # of what the data set or a step before gives
        return f"there is no {message(error)!r} in what it is given"
    return " ".join(message(error).split()) or type(error).__name__


def _file_fault(file: str, error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    size = os.path.getsize(file) if os.path.isfile(file) else None
    if size == 0:
        return "is empty"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return "is damaged or no image"


def skipped(record: str) -> str | None:
    """How many images a training left out, and which; None if none.

    Args:
        record: as given to :func:`guard`.
    """
    if not os.path.isfile(record):
        return None
    files = list(dict.fromkeys(Path(record).read_text().splitlines()))
    what = "image" if len(files) == 1 else "images"
    return f"{len(files)} {what} that cannot be used: {preview(files, 3)} (all in {record})"


def missing_files(files: Iterable[str]) -> list[str]:
    """Those of some local files that do not exist; every folder is listed once."""
    held: dict[str, set[str]] = {}
    lacking = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in held:
            held[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        # Names may differ in case only, which some file systems do not mind.
        if "://" not in file and name not in held[folder] and not os.path.exists(file):
            lacking.append(file)
    return lacking


def check_files(files: Sequence[str], what: str, path: str, skip: bool) -> str | None:
    """Refuse files that do not exist.

    Args:
        files: paths.
        what: they are, for the message.
        path: dotted key of the data set in the config.
        skip: whether some images may be missing: then a line about them is returned.

    Raises:
        UserError: names the first one.
    """
    lacking = missing_files(files)
    if not lacking:
        return None
    line = f"{len(lacking)} of the {len(files)} {what} of {path} do not exist, first {lacking[0]}"
    if skip and len(lacking) < len(files):
        return f"{line}: they are left out"
    raise UserError(f"{line}; are {path}.data_root and {path}.data_prefix right?")


def try_pipeline(dataset: Any, path: str) -> None:
    """Send some image through a data set's pipeline, so that a wrong step shows at once.

    Args:
        dataset: as built, guarded, perhaps wrapped.
        path: its dotted key in the config.

    Raises:
        UserError: names the step and what it said.
    """
    failed: Exception | None = None
    with preserve_rng_state():
        for index in range(min(TRIED, len(dataset))):
            try:
                if (sample := dataset[index]) is not None:
                    _check_packed(sample, path)
                    return
            except (MemoryError, UserError):
                raise
            except Exception as error:
                failed = failed or error
    if failed is None:
        return
    step, line = _step(failed), _words(failed)
    if step is None and line.startswith("Cannot find valid image"):  # mmengine's own words
        raise UserError(
            f"{path}.pipeline: no image is left by its steps, tried 1000 times: does one ask for "
            "objects or crops that are not there?"
        ) from failed
    if step is None:
        raise failed
    raise UserError(f"{path}.pipeline: {step}: {line} (--debug shows where)") from failed


def _check_packed(sample: object, path: str) -> None:
    """Raise a UserError for what no model of OpenMMLab takes: the last step is missing."""
    if isinstance(sample, dict) and "img" in sample and "inputs" not in sample:
        raise UserError(
            f"{path}.pipeline gives {preview(list(sample))}, and no 'inputs' and 'data_samples' as "
            "a model takes them: end it with PackDetInputs, PackSegInputs or the like"
        )


def _step(error: Exception) -> str | None:
    """Name of the innermost pipeline step that was running when an error was raised."""
    step = None
    for frame in frames(error):
        if frame.f_code.co_name == "__call__" and isinstance(frame.f_locals.get("self"), Compose):
            step = frame.f_locals.get("t")
    return type(getattr(step, "step", step)).__name__ if step is not None else None

"""Sizes of images: what a pipeline's own loading step gives, from headers wherever they suffice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from PIL import Image

from .randomness import preserve_rng_state

SAMPLED = 50  # images or label maps of a data set that are opened before the first step
HEADERS = 2000  # whose headers alone are read: a fifth of a second
TURNED = (5, 6, 7, 8)  # values of the EXIF tag that exchange height and width
ORIENTATION = 0x0112
Entry = TypeVar("Entry")
Size = tuple[int, int]
Step = Callable[[dict], dict | None]


def stored_size(file: str | None) -> Size | None:
    """Height and width of a picture's pixels as stored; None for what Pillow does not know."""
    return (_header(file) or (None, False))[0]


def is_turned(file: str) -> bool:
    """Whether a picture's EXIF tag exchanges height and width."""
    return (_header(file) or (None, False))[1]


def loaded_size(file: str, step: Step | None) -> Size | None:
    """Height and width of a picture as a pipeline loads it.

    Programs disagree on whether a photo that its EXIF tag turns is turned: mmcv's loading step does
    it or not by its ``color_type`` and ``imdecode_backend``. So that step loads such a photo here.

    Args:
        file: of the picture.
        step: that loads it; None: unknown.

    Returns:
        None if it cannot be told.
    """
    header = _header(file)
    if header is None or not header[1]:
        return header and header[0]
    try:
        with preserve_rng_state():
            loaded = step(dict(img_path=file)) if step else None
        return tuple(loaded["img"].shape[:2]) if loaded else None
    except Exception:  # reported where the picture is used
        return None


def _header(file: str | None) -> tuple[Size, bool] | None:
    """Height and width as stored, and whether the EXIF tag exchanges them."""
    try:
        with Image.open(file or "") as picture:
            width, height = picture.size
            return (height, width), picture.getexif().get(ORIENTATION) in TURNED
    except (OSError, SyntaxError, ValueError):
        return None


def image_step(dataset: Any) -> tuple[int, Step] | tuple[None, None]:
    """Place and step of a data set's pipeline that loads the image."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    for index, step in enumerate(steps):
        if type(step).__name__.startswith("LoadImage"):
            return index, step
    return None, None


def rotation_advice(file: str, dataset: Any, path: str) -> str:
    """What to change where a picture's EXIF tag and the loading step decide; '' elsewhere.

    Args:
        file: of the picture.
        dataset: that it is of.
        path: dotted key of the data set in the config.
    """
    index, step = image_step(dataset)
    if index is None or not is_turned(file):
        return ""
    turns = loaded_size(file, step) != stored_size(file)
    other = "color_ignore_orientation" if turns else "color"
    return (
        f" (its EXIF tag turns it, and {type(step).__name__} "
        + ("follows it" if turns else "does not")
        + f": set {path}.pipeline.{index}.color_type={other!r} in all pipelines, if the "
        f"annotations are of the picture as it is {'stored' if turns else 'shown'})"
    )


def evenly_spaced(entries: Sequence[Entry], most: int = SAMPLED) -> Iterator[Entry]:
    """Some entries, evenly spread."""
    count = min(most, len(entries))
    yield from (entries[k * len(entries) // count] for k in range(count))

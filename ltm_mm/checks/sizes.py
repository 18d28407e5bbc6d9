"""Sizes of images, from their headers."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from PIL import Image

SAMPLED = 50  # images or label maps of a data set that are opened before the first step
TURNED = (5, 6, 7, 8)  # values of the EXIF tag that exchange height and width
ORIENTATION = 0x0112
Entry = TypeVar("Entry")


def size_of(file: str | None) -> tuple[int, int] | None:
    """Height and width as a picture is shown; None for what Pillow does not know."""
    try:
        with Image.open(file or "") as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION) in TURNED
            return (width, height) if turned else (height, width)
    except (OSError, SyntaxError, ValueError):
        return None


def spread(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Some entries, evenly spread."""
    count = min(SAMPLED, len(entries))
    yield from (entries[k * len(entries) // count] for k in range(count))

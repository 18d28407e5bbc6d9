"""Checks of the backbones' constructor arguments, one function per kind of value.

Every function takes options by name and raises a ValueError that names the first invalid one, its
value, and what is allowed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def check_ints(least: int = 1, **options: Any) -> None:
    """Each must be an int >= ``least``."""
    for name, value in options.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be an int >= {least}, got {value!r}")


def check_ints_per_stage(**options: Any) -> None:
    """Each must be a list of ints >= 1, all of the same length."""
    for name, value in options.items():
        if not is_ints(value) or not value or min(value) < 1:
            raise ValueError(f"{name} must be a list of ints >= 1, got {value!r}")
    if len({len(value) for value in options.values()}) > 1:  # type: ignore[arg-type]
        first, last = " and ".join(options).rsplit(" and ", 1)
        raise ValueError(
            f"{first.replace(' and ', ', ')} and {last} must have one entry per stage each, got "
            + ", ".join(map(repr, options.values()))
        )


def is_ints(value: object) -> bool:
    """Whether a value is a sequence of ints only."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(type(x) is int for x in value)
    )


def check_image_size(**options: Any) -> None:
    """Each must be an int >= 1, or two of them: height and width in pixels."""
    for name, value in options.items():
        pair = (value, value) if type(value) is int else value
        if not is_ints(pair) or len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"{name} must be an int >= 1 or two (height, width), got {value!r}")


def check_positive(**options: Any) -> None:
    """Each must be a finite number above 0."""
    for name, value in options.items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number > 0, got {value!r}")


def check_rates(**options: Any) -> None:
    """Each must be a number from 0 to 1: a rate of dropout."""
    for name, value in options.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_flags(**options: Any) -> None:
    """Each must be True or False."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def check_texts(**options: Any) -> None:
    """Each must be a non-empty string, or None."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, str) and value):
            raise ValueError(f"{name} must be a text or None, got {value!r}")


def check_layers(**options: Any) -> None:
    """Each must be a dict with a layer's ``type``, as mmengine's registries take it, or None."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, Mapping) and value.get("type")):
            raise ValueError(f"{name} must be dict(type=LAYER, ...) or None, got {value!r}")


def check_arch(arch: object, archs: Iterable[str]) -> None:
    """It must be one of the names."""
    known = list(archs)
    if arch not in known:
        raise ValueError(f"unknown arch {arch!r}: choose from {', '.join(known)}")

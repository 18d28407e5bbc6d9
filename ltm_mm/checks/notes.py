"""Lines about a data set that are no errors."""

import logging
from collections.abc import Sequence

from mmengine.logging import print_log


def say(line: str) -> None:
    """Log what is left out or looks odd; of several ranks the first one does."""
    print_log(line, logger="current", level=logging.WARNING)


def first(names: Sequence[object], count: int = 5) -> str:
    """The first names, for a message."""
    return ", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")

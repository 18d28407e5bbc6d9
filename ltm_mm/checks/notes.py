"""Lines about a data set that are no errors."""

import logging

from mmengine.logging import print_log


def log_warning(line: str) -> None:
    """Log what is left out or looks odd; of several ranks the first one does."""
    print_log(line, logger="current", level=logging.WARNING)

"""Data sets, looked at before the first step: what would come up after an hour, or never."""

from .loaders import build_loaders, datasets, missing
from .reading import skipped

__all__ = ["build_loaders", "datasets", "missing", "skipped"]

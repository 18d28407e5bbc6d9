"""Token merging on a model in memory, whoever built it: put it on, take it off (ours)."""

from .apply import apply, is_applied, remove

__all__ = ["apply", "is_applied", "remove"]

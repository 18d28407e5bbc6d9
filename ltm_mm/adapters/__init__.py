"""Token merging on a model in memory, whoever built it: put it on, take it off (ours)."""

from .apply import apply, merges, remove

__all__ = ["apply", "merges", "remove"]

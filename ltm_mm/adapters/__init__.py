"""Add token merging to a model in memory, from any library, and remove it again."""

from .apply import apply, is_applied, remove

__all__ = ["apply", "is_applied", "remove"]

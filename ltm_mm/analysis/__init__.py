"""Measuring: which configs merging fits, and what it costs and saves."""

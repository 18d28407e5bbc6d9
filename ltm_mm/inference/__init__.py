"""Predict on photos, folders and videos: what ``tools/predict.py`` calls."""

from .run import predict

__all__ = ["predict"]

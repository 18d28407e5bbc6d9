"""The dense information-bottleneck loss."""

from .dense_ib import BOUNDS, DenseIBLoss

__all__ = ["BOUNDS", "DenseIBLoss"]

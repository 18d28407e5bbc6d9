"""Learning what merging loses: the plain network teaches the merged one, without labels."""

from ..checkpoints.learned import Learned
from .distill import Progress, Settings, distill
from .learn import learn

__all__ = ["Learned", "Progress", "Settings", "distill", "learn"]

"""What stands behind ``tools/``: configs, the exchange of backbones, training, testing."""

from .config import load_config
from .errors import UserError, clean_errors
from .run import evaluate, train
from .swap import parse_slots, use_ltm

__all__ = [
    "UserError",
    "clean_errors",
    "evaluate",
    "load_config",
    "parse_slots",
    "train",
    "use_ltm",
]

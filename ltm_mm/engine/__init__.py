"""What stands behind ``tools/``: configs, the exchange of backbones, training, testing."""

from .config import load_config
from .errors import UserError, clean_errors
from .ib_hook import InformationBottleneck, use_ib
from .run import evaluate, train
from .swap import parse_slots, use_ltm

__all__ = [
    "InformationBottleneck",
    "UserError",
    "clean_errors",
    "evaluate",
    "load_config",
    "parse_slots",
    "train",
    "use_ib",
    "use_ltm",
]

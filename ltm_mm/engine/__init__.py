"""What stands behind ``tools/``: configs, the exchange of backbones, training, testing."""

from ..errors import UserError, clean_errors
from .commands import ConfigOptions
from .config import load_config
from .convert import parse_keep, use_ltm
from .ib_hook import InformationBottleneck, use_ib
from .ranks import leave_ranks
from .run import evaluate, train
from .statistics_hook import MergeStatistics

__all__ = [
    "ConfigOptions",
    "InformationBottleneck",
    "MergeStatistics",
    "UserError",
    "clean_errors",
    "evaluate",
    "leave_ranks",
    "load_config",
    "parse_keep",
    "train",
    "use_ib",
    "use_ltm",
]

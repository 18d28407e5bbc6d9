"""What stands behind ``tools/``: configs, models, training, testing; imported when asked for."""

from importlib import import_module
from typing import Any

_MODULES = {
    "InformationBottleneck": ".ib_hook",
    "MergeStatistics": ".statistics_hook",
    "evaluate": ".run",
    "leave_ranks": ".ranks",
    "load_config": ".config",
    "parse_keep": ".convert",
    "train": ".run",
    "use_ib": ".ib_hook",
    "use_ltm": ".convert",
}
__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)

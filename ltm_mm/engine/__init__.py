"""What stands behind ``tools/``: configs, models, training, testing; imported when asked for."""

from importlib import import_module

_PLACES = {
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
__all__ = list(_PLACES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)

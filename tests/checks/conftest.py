"""The tiny trainings of the engine's tests."""

from tests.engine.conftest import (  # noqa: F401
    _default_scope,
    _one_thread,
    options,
    shapes,
)

"""Quick logs for compiled and exported graphs."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytest would write down of every graph takes many times as long as making it."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)

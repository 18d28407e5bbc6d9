"""Shared set-up: `ltm_mm` before mmdet (for the ops stand-in), fixed seeds, real data."""

import os
from pathlib import Path

import pytest
import torch

import ltm_mm  # noqa: F401  (before any mmdet import)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with small real data sets; LTM_SHARED_DATA names another one."""
    folder = Path(os.environ.get("LTM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LTM_SHARED_DATA to a folder that has it")
    return folder.resolve()

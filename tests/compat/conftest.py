"""mmcv's op functions, made to call the fallback also where compiled mmcv is installed."""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import ltm_mm.compat

SUPPORTED = (
    "deform_conv",
    "focal_loss",
    "modulated_deform_conv",
    "multi_scale_deform_attn",
    "nms",
    "roi_align",
)


def load_stand_in() -> ModuleType:
    """A fresh copy of the module that the finder would serve as ``mmcv._ext``."""
    path = Path(ltm_mm.compat.__file__).with_name("ext.py")
    spec = spec_from_file_location("stand_in", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_stand_in(patch: pytest.MonkeyPatch) -> ModuleType:
    """Let the served op modules of mmcv call the fallback until the patch is undone."""
    stand_in = load_stand_in()
    importlib.import_module("mmcv.ops")
    for name in SUPPORTED:  # by sys.modules: mmcv.ops.nms is the function
        patch.setattr(sys.modules[f"mmcv.ops.{name}"], "ext_module", stand_in)
    return stand_in


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return use_stand_in(monkeypatch)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param

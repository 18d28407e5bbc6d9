"""Shared set-up: `ltm_mm` before mmdet (for the fallback of mmcv's ops), fixed seeds, real data."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import ltm_mm  # noqa: F401  isort: skip  (before any mmdet import)

import pytest
import torch
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).parent.parent


def load_file(path: str | Path) -> ModuleType:
    """A Python file of the repository that belongs to no package, as a module."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location(f"file_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def tool_runner(name: str, patch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``main`` of a file in ``tools/``, called with the arguments of a command line."""
    module = load_file(f"tools/{name}.py")

    def run(*args: object) -> None:
        patch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
        module.main()

    return run


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collections: mmengine starts one per data set built."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_start() -> Iterator[None]:
    """Leave out what only makes a log nicer or a path longer to find; seconds per runner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.runner.runner.collect_env", lambda: {"PyTorch": "2.x"})
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
        patch.setattr("mmengine.config.utils._get_cfg_metainfo", _metainfo)
        yield


def _metainfo(package_path: str, cfg_path: str) -> dict:
    """Stands for mmengine's look-up of a config in all metafiles of a package; it finds none.

    mmengine then takes the path as it is, which is what the look-up ends in, too.
    """
    raise ValueError(cfg_path)


@pytest.fixture(autouse=True)
def _fresh_start() -> Iterator[None]:
    """A fixed seed, and none of the global state that mmengine's runners leave behind."""
    torch.manual_seed(0)
    yield
    forget_runs()


def forget_runs(manager: type = ManagerMixin) -> None:
    """Drop mmengine's global instances (scope, log, hub, every kind of visualizer).

    A second run of a process would go on writing into the first one's folder.
    """
    for kind in manager.__subclasses__():
        kind._instance_dict.clear()
        forget_runs(kind)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with small real data sets; LTM_SHARED_DATA names another one."""
    folder = Path(os.environ.get("LTM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LTM_SHARED_DATA to a folder that has it")
    return folder.resolve()

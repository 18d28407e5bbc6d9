"""Tiny trainings: the built-in config and data, cut down until only the plumbing is left."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from ltm_mm.datasets import ensure_shapes
from ltm_mm.errors import clean_errors
from tests.conftest import ROOT

SHAPES_CONFIG = str(ROOT / "configs" / "ltm_swin_maskrcnn_shapes.py")


def line_of(capsys: pytest.CaptureFixture, call: Callable[[], object]) -> str:
    """The one line that a call ends in."""
    with pytest.raises(SystemExit) as ended, clean_errors():
        call()
    assert ended.value.code == 1
    (line,) = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
    return line


def data_options(root: Path) -> dict[str, object]:
    """Options that point the built-in Mask R-CNN config at a folder and make it tiny."""
    options: dict[str, object] = {
        "train_dataloader.batch_size": 2,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.logger.interval": 1,
    }
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = str(root)
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
        if part != "train":
            file = root / "annotations" / "instances_val.json"
            options[f"{part}_evaluator.ann_file"] = str(file)
    return options


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of the built-in shapes data set; not to be changed by a test."""
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 4, "val": 2})


@pytest.fixture
def options(shapes: Path) -> Callable[..., dict[str, object]]:
    """Options for a tiny run on ``shapes``; keywords replace or add some (``__`` for dots)."""

    def make(root: Path = shapes, **changes: object) -> dict[str, object]:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return {**data_options(root), **named}

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tiny maps more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _default_scope() -> Iterator[None]:
    """Runners set mmengine's default scope for the whole process; put it back."""
    instances = DefaultScope._instance_dict
    before = instances.copy()
    yield
    instances.clear()
    instances.update(before)

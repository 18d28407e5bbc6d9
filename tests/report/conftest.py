"""A real run to report on: a tiny detector, trained, resumed and tested."""

from pathlib import Path

import pytest

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import evaluate, train
from tests.conftest import forget_runs
from tests.engine.conftest import SHAPES_CONFIG, data_options

TINY: dict[str, object] = {
    "train_dataloader.dataset.pipeline.2.scale": (96, 96),
    "val_dataloader.dataset.pipeline.1.scale": (96, 96),
    "test_dataloader.dataset.pipeline.1.scale": (96, 96),
    "model.train_cfg.rpn_proposal.max_per_img": 10,
    "model.train_cfg.rcnn.sampler.num": 8,
    "model.test_cfg.rpn.max_per_img": 10,
    "model.test_cfg.rcnn.score_thr": 0.0,
}


@pytest.fixture(scope="session")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir after training for two epochs of two steps, one more, and a test."""
    folder = tmp_path_factory.mktemp("run")
    shapes = ensure_shapes(folder / "shapes", {"train": 4, "val": 2})
    options = {**data_options(shapes), **TINY, "train_cfg.max_epochs": 2}
    work = folder / "tiny"
    forget_runs()
    train(SHAPES_CONFIG, str(work), cfg_options=options)
    forget_runs()
    options["train_cfg.max_epochs"] = 3
    train(SHAPES_CONFIG, str(work), resume="auto", cfg_options=options)
    forget_runs()
    evaluate(SHAPES_CONFIG, str(work / "epoch_3.pth"), str(work), cfg_options=options)
    forget_runs()
    return work

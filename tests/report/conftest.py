"""A real run to report on: a tiny detector, trained, resumed and tested."""

from pathlib import Path

import pytest
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import evaluate, train
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.runner.runner.collect_env", lambda: {"PyTorch": "2.x"})
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
        train(SHAPES_CONFIG, str(work), cfg_options=options)
        _forget_runs()
        options["train_cfg.max_epochs"] = 3
        train(SHAPES_CONFIG, str(work), resume="auto", cfg_options=options)
        _forget_runs()
        evaluate(SHAPES_CONFIG, str(work / "epoch_3.pth"), str(work), cfg_options=options)
    _forget_runs()
    return work


def _forget_runs() -> None:
    for manager in (DefaultScope, MMLogger, MessageHub, Visualizer, DetLocalVisualizer):
        manager._instance_dict.clear()

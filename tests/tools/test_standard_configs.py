"""The standard configs at full width on real COCO and ADE20K images, only paths changed.

Heads and images are made small where that saves minutes; a few steps teach nothing. What is
tested is that real files are read, trained on, evaluated and drawn.
"""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tools.conftest import Tool

COCO_CONFIGS = ("ltm_swin_maskrcnn.py", "ltm_efficientvit_maskrcnn.py")
ADE_CONFIGS = ("ltm_swin_upernet.py", "ltm_efficientvit_upernet.py")
COMMON: dict[str, object] = {
    "model.backbone.init_cfg": None,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "default_hooks.logger.interval": 1,
}


@pytest.fixture
def coco(shared_data: Path) -> Path:
    """Real COCO images."""
    return _folder(shared_data, "coco_mini")


@pytest.fixture
def ade(shared_data: Path) -> Path:
    """Real ADE20K images."""
    return _folder(shared_data, "ade20k_mini")


def _folder(shared_data: Path, name: str) -> Path:
    if not (shared_data / name).is_dir():
        pytest.skip(f"no {name} in {shared_data}")
    return shared_data / name


def flags(work: Path, changes: dict[str, object]) -> list[str]:
    """The end of a command line."""
    pairs = (f"{key}={value}" for key, value in {**COMMON, **changes}.items())
    return ["--work-dir", str(work), "--cfg-options", *pairs]


def coco_changes(coco: Path) -> dict[str, object]:
    """Paths, three images each of about 320 x 448 pixels, and heads that take seconds."""
    changes: dict[str, object] = {
        "model.train_cfg.rpn_proposal.max_per_img": 20,
        "model.train_cfg.rcnn.sampler.num": 8,
        "model.test_cfg.rpn.max_per_img": 20,
        "model.test_cfg.rcnn.score_thr": 0.0,
        "train_dataloader.dataset.indices": 3,
        "train_dataloader.batch_size": 1,
        "train_dataloader.dataset.pipeline.2.scale": "(448,320)",
        "train_cfg.max_epochs": 1,
    }
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.data_root"] = coco
        if part != "train":
            changes[f"{part}_dataloader.dataset.indices"] = 3
            changes[f"{part}_dataloader.dataset.pipeline.1.scale"] = "(448,320)"
            changes[f"{part}_dataloader.num_workers"] = 0
            changes[f"{part}_dataloader.persistent_workers"] = False
            changes[f"{part}_evaluator.ann_file"] = coco / "annotations/instances_val2017.json"
    return changes


@pytest.mark.slow
@pytest.mark.parametrize("name", COCO_CONFIGS)
def test_mask_rcnn_on_coco(tool: Tool, coco: Path, tmp_path: Path, name: str) -> None:
    config, work = ROOT / "configs" / name, tmp_path / "work"
    changes = coco_changes(coco)
    first = tool("train.py", config, *flags(work, changes))
    losses = re.findall(r"Epoch\(train\).* loss: ([\d.]+)", first.stdout)
    assert len(losses) == 3
    assert all(0 < float(loss) < 50 for loss in losses)
    assert re.search(r"metrics +coco/bbox_mAP ", first.stdout)

    changes["train_cfg.max_epochs"] = 2
    second = tool("train.py", config, "--resume", *flags(work, changes))
    assert "resumed epoch: 1, iter: 3" in second.stdout

    drawn = tmp_path / "drawn"
    tested = tool(
        "test.py", config, work / "epoch_2.pth", "--show-dir", drawn, *flags(work, changes)
    )
    assert re.search(r"metrics +coco/bbox_mAP .*coco/segm_mAP ", tested.stdout)
    assert len(list(drawn.glob("*.jpg"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ADE_CONFIGS)
def test_upernet_on_ade20k(tool: Tool, ade: Path, tmp_path: Path, name: str) -> None:
    config, work = ROOT / "configs" / name, tmp_path / "work"
    changes: dict[str, object] = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2}
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.data_root"] = ade
    trained = tool("train.py", config, *flags(work, changes))
    losses = re.findall(r"Iter\(train\).* loss: ([\d.]+)", trained.stdout)
    assert len(losses) == 2
    assert all(0 < float(loss) < 50 for loss in losses)
    assert re.search(r"metrics +aAcc .*mIoU .*mAcc ", trained.stdout)

    drawn = tmp_path / "drawn"
    tested = tool(
        "test.py", config, work / "iter_2.pth", "--show-dir", drawn, *flags(work, changes)
    )
    assert re.search(r"metrics +aAcc .*mIoU .*mAcc ", tested.stdout)
    assert len(list(drawn.glob("*.jpg"))) == 3

"""A whole life in one process: train over a bad image, resume, evaluate, draw, start from."""

import logging
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from ltm_mm.checks.reading import ReadGuard
from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import evaluate, load_config, train
from ltm_mm.engine.build import drop_pretrained
from tests.conftest import ROOT, forget_runs
from tests.engine.conftest import SHAPES_CONFIG, line_of

Options = Callable[..., dict[str, object]]
FAST = {
    "train_dataloader.dataset.pipeline.2.scale": (96, 96),
    "model.train_cfg.rpn_proposal.max_per_img": 10,
    "model.train_cfg.rcnn.sampler.num": 8,
    "model.test_cfg.rpn.max_per_img": 10,
    "model.test_cfg.rcnn.score_thr": 0.0,
    "default_hooks.visualization.score_thr": 0.0,
}


@pytest.fixture
def damaged(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the shapes with an image that is none."""
    root = Path(shutil.copytree(shapes, tmp_path / "own"))
    min((root / "train").iterdir()).write_bytes(b"no image")
    return root


def test_train_resume_evaluate(
    damaged: Path, tmp_path: Path, options: Options, capsys: pytest.CaptureFixture
) -> None:
    work, changes = str(tmp_path / "work"), {**options(damaged), **FAST}
    runner = train(SHAPES_CONFIG, work, cfg_options=changes)
    assert runner.iter == 2
    log = next(tmp_path.glob("work/*/*.log")).read_text()
    bad = str(min((damaged / "train").iterdir()))
    assert f"{bad} is damaged or no image: skipped, another image takes its place (1 skip" in log
    report = capsys.readouterr().out.rpartition("Done.")[2]
    assert re.search(r"metrics +coco/bbox_mAP 0", report)
    assert f"{work}/epoch_1.pth" in report
    assert f"left out        1 image that cannot be used: {bad} (all in {work}/" in report

    changes["train_cfg.max_epochs"] = 2
    runner = train(SHAPES_CONFIG, work, resume="auto", cfg_options=changes)
    assert runner.iter == 4
    assert max(len(list(tmp_path.glob("work/epoch_*.pth"))), 2) == 2

    out, pictures = tmp_path / "out.pkl", tmp_path / "pictures"
    metrics = evaluate(
        SHAPES_CONFIG,
        f"{work}/epoch_2.pth",
        work,
        out=str(out),
        show_dir=str(pictures),
        ltm="fast",
        cfg_options=changes,
    )
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(metrics)
    assert len(pickle.loads(out.read_bytes())) == 2
    drawn = sorted(p.name for p in pictures.iterdir())
    assert drawn == sorted(p.name for p in (damaged / "val").iterdir())
    plain = cv2.imread(str(damaged / "val" / drawn[0]))
    assert cv2.imread(str(pictures / drawn[0])).shape[0] == plain.shape[0]


def test_start_from_a_plain_detector(
    damaged: Path, tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but merging is the checkpoint's, and no pretrained weights are asked for."""
    from mmdet.registry import MODELS

    from ltm_mm.engine import load_config

    changes = {**options(damaged), **FAST, "model.backbone.init_cfg": {"type": "Pretrained"}}
    changes["model.backbone.init_cfg"]["checkpoint"] = "http://127.0.0.1:9/none.pth"
    plain = MODELS.build(load_config(SHAPES_CONFIG, {"model.backbone.keep": None}).model)
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "plain.pth")

    monkeypatch.setattr(Runner, "save_checkpoint", lambda *args, **kwargs: None)
    changes |= {"optim_wrapper.optimizer.lr": 0.0, "param_scheduler": None, "val_dataloader": None}
    changes |= {"val_cfg": None, "val_evaluator": None, "model.backbone.detail": True}
    runner = train(
        SHAPES_CONFIG,
        str(tmp_path),
        checkpoint=str(tmp_path / "plain.pth"),
        ltm="balanced",
        cfg_options=changes,
    )
    own_state = runner.model.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(own_state[name], value, rtol=0, atol=0)
    assert any(".merge." in name for name in own_state)


def test_train_resume_evaluate_with_mmseg(tmp_path: Path) -> None:
    """The same tools: metrics, pictures, label maps."""
    config = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
    root = ensure_shapes(tmp_path / "shapes", {"train": 4, "val": 2})
    changes: dict[str, object] = {"train_cfg.max_iters": 1, "train_cfg.val_interval": 2}
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.data_root"] = str(root)
        changes[f"{part}_dataloader.num_workers"] = 0
        changes[f"{part}_dataloader.persistent_workers"] = False
    work = str(tmp_path / "work")
    changes["default_hooks.checkpoint.interval"] = 1
    changes["train_dataloader.batch_size"] = 2
    assert train(config, work, cfg_options=changes).iter == 1
    changes["train_cfg.max_iters"] = 2
    assert train(config, work, resume="auto", cfg_options=changes).iter == 2
    metrics = evaluate(
        config,
        f"{work}/iter_2.pth",
        work,
        out=str(tmp_path / "maps"),
        show_dir=str(tmp_path / "pictures"),
        cfg_options=changes,
    )
    assert {"mIoU", "mAcc", "aAcc"} <= set(metrics)
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == sorted(p.name for p in (root / "val").iterdir())
    plain = cv2.imread(str(root / "val" / names[0]))
    drawn = cv2.imread(str(tmp_path / "pictures" / names[0]))
    assert drawn.shape == (plain.shape[0], 2 * plain.shape[1], 3)  # ground truth beside it


def test_drop_pretrained() -> None:
    from mmengine.config import Config

    given = {"type": "Pretrained", "checkpoint": "x"}
    cfg = Config(
        {
            "model": {
                "pretrained": "x",
                "backbone": {"init_cfg": given, "pretrained": True},
                "heads": [{"init_cfg": {"type": "Normal"}}, {"init_cfg": given}],
            }
        }
    )
    drop_pretrained(cfg)
    assert cfg.to_dict()["model"] == {
        "pretrained": None,
        "backbone": {"init_cfg": None, "pretrained": False},
        "heads": [{"init_cfg": {"type": "Normal"}}, {"init_cfg": None}],
    }


def test_read_guard_counts_each_file_once(caplog: pytest.LogCaptureFixture) -> None:
    def step(results: dict) -> dict:
        if results["img_path"].startswith("bad"):
            raise OSError("truncated")
        return results

    guard = ReadGuard(step, "img_path", skip=True)
    with caplog.at_level(logging.ERROR, logger="mmengine"):
        for name in ("bad1", "good", "bad1", "good", "bad2"):
            expected = None if name.startswith("bad") else {"img_path": name}
            assert guard({"img_path": name}) == expected
    assert guard.files == {"bad1", "bad2"}
    assert guard.in_a_row == 1


def test_load_from_starts_a_training_as_a_checkpoint_does(
    options: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What does not fit is named in one line; an address that cannot be reached ends in one."""
    address = "https://weights.invalid/start-1234abcd.pth"
    line = line_of(
        capsys,
        lambda: train(SHAPES_CONFIG, str(tmp_path / "a"), cfg_options=options(load_from=address)),
    )
    assert f"could not download {address}" in line
    assert "--checkpoint FILE" in line
    forget_runs()
    weights = tmp_path / "weights.pth"
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(load_config(SHAPES_CONFIG).model)
    state = {k: torch.full_like(v, 0.01) for k, v in model.state_dict().items()}
    state["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(4, 256)  # of three classes
    torch.save({"state_dict": state}, weights)
    changes = options(load_from=str(weights), optim_wrapper__optimizer__lr=0.0, **FAST)
    run = train(SHAPES_CONFIG, str(tmp_path / "b"), cfg_options=changes)
    said = capsys.readouterr()
    assert "1 other parameters start fresh and need training (roi_head.bbox_head.fc_cls" in (
        said.out + said.err
    )
    start = dict(run.model.named_parameters())["neck.lateral_convs.0.conv.weight"]
    torch.testing.assert_close(start, torch.full_like(start, 0.01), rtol=0, atol=1e-6)
    assert run.cfg.load_from == str(weights)

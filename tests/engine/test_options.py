"""Options out of range, files and folders in the way: one line each, before anything is built."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from torch import nn

from ltm_mm.arguments import ConfigOptions, parse_value
from ltm_mm.checks.heads import check_channels
from ltm_mm.checks.outputs import check_file, check_folder
from ltm_mm.checks.training import check_lengths
from ltm_mm.datasets import SHAPES
from ltm_mm.engine import evaluate, load_config, train
from ltm_mm.engine.pictures import LabelMaps, Pictures, unique_names
from ltm_mm.engine.resume import check_resumable
from ltm_mm.errors import UserError, clean_errors, explain
from ltm_mm.models.backbones.swin import LTMSwin
from tests.engine.conftest import SHAPES_CONFIG, line_of

Options = Callable[..., dict[str, object]]
LOAD = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
SMALL = {
    "train_dataloader__dataset__pipeline__2__scale": (96, 96),
    "model__train_cfg__rpn_proposal__max_per_img": 10,
    "model__train_cfg__rcnn__sampler__num": 8,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_dataloader__batch_size": 0},
            "train_dataloader.batch_size must be an integer >= 1",
        ),
        ({"train_dataloader__batch_size": -1}, "an integer >= 1, got -1"),
        ({"train_dataloader__batch_size": "two"}, "an integer >= 1, got 'two'"),
        ({"val_dataloader__batch_size": 0}, "val_dataloader.batch_size must be an integer >= 1"),
        ({"train_dataloader__num_workers": -1}, "train_dataloader.num_workers must be an integer"),
        (
            {"train_dataloader__persistent_workers": True},
            "num_workers is 0: set train_dataloader.persistent_workers=False",
        ),
        (
            {"train_dataloader__prefetch_factor": 2},
            "num_workers is 0: set train_dataloader.prefetch_factor=None",
        ),
        (
            {"train_dataloader__batch_size": 64, "train_dataloader__drop_last": True},
            "train_dataloader has 4 images and drops them as an incomplete batch: lower train_data",
        ),
        ({"train_dataloader__sampler__type": "DefaultSampl"}, "did you mean DefaultSampler"),
        ({"train_cfg__max_epochs": 0}, "train_cfg.max_epochs must be an integer >= 1, got 0"),
        ({"train_cfg__val_interval": 0}, "train_cfg.val_interval must be an integer >= 1, got 0"),
        *(
            (
                {"default_hooks__checkpoint__interval": value},
                f"default_hooks.checkpoint.interval must be an integer >= 1, got {value!r}",
            )
            for value in (0, -2, 0.5, None)
        ),
        (
            {"default_hooks__logger__interval": 0},
            "default_hooks.logger.interval must be an integer >= 1, got 0",
        ),
        (
            {"default_hooks__visualization__interval": -1},
            "default_hooks.visualization.interval must be an integer >= 1, got -1",
        ),
        *(
            (
                {"randomness": dict(seed=value)},
                f"randomness.seed must be an integer from 0 to 4294967295, got {value!r}",
            )
            for value in ("a", -1, 1.5, True)
        ),
        ({"log_level": "LOUD"}, "log_level must be DEBUG, INFO, WARNING or ERROR, got 'LOUD'"),
        ({"default_scope": "mmfoo"}, "default_scope is 'mmfoo', and no package of that name is i"),
        *(
            (
                {"param_scheduler": [dict(type=kind, begin=0, end=9, **{factor: 0})]},
                f"param_scheduler.0.{factor} is 0: the learning rate would stay 0",
            )
            for kind, factor in (("LinearLR", "start_factor"), ("ConstantLR", "factor"))
        ),
        (
            {"default_hooks__checkpoint__save_best": "coco/bbox_map"},
            "save_best is 'coco/bbox_map', which is not measured: did you mean coco/bbox_mAP or",
        ),
        (
            {"custom_hooks": [dict(type="EMAHook", momentumm=0.1)]},
            "EMAHook: ExponentialMovingAverage.__init__() got an unexpected keyword argument",
        ),
        ({"model__test_cfg": None}, "MaskRCNN: 'NoneType' object has no attribute 'rpn' (--debug"),
        (
            {"train_dataloader__dataset__pipeline": [dict(type="LoadImageFromFile"), LOAD]},
            "train_dataloader.dataset.pipeline gives img_path, img_id, ",
        ),
        *(
            (
                {"param_scheduler": [dict(type="MultiStepLR", milestones=value)]},
                "param_scheduler.0.milestones must be a list of ascending integers, such as "
                f"[8, 11], got {value!r}",
            )
            for value in ("8", 8, ["8"], [11, 8], [8, 8], [-1], [8.5])
        ),
        ({"load_from": "/no/such.pth"}, "checkpoint /no/such.pth does not exist"),
        (
            {"optim_wrapper__paramwise_cfg": {"norm_decay": 0}},
            "optim_wrapper.paramwise_cfg takes no 'norm_decay': did you mean norm_decay_mult",
        ),
        *(
            (
                {"optim_wrapper__accumulative_counts": value},
                f"optim_wrapper.accumulative_counts must be an integer >= 1, got {value!r}",
            )
            for value in (0, 1.5)
        ),
        ({"custom_hooks": dict(type="EMAHook")}, "hook should be an instance of Hook or dict"),
        ({"model": "MaskRCNN"}, "model should be a nn.Module object or dict, but got MaskRCNN"),
        ({"val_cfg": None}, "give all three, or None for all three; val_cfg is None"),
        (
            {"optim_wrapper__optimizer__lr": 1e8, "param_scheduler": None, **SMALL},
            "the loss is nan at step 2: training diverged; lower optim_wrapper.optimizer.lr",
        ),
        (
            {"model__rpn_head__anchor_generator__strides": [4, 8, 16], **SMALL},
            "the model fails in its first step, in RPNHead: assert len(featmap_sizes)",
        ),
        ({"model__backbone__window_size": 0}, "LTMSwin: window_size must be an int >= 1, got 0"),
        (
            {"model__backbone__pretrain_img_size": (8, 8, 3)},
            "an int >= 1 or two (height, width), g",
        ),
        ({"model__backbone__in_channels": 0}, "LTMSwin: in_channels must be an int >= 1, got 0"),
        (
            {"train_dataloader__dataset__pipeline__2__scale": (0, 0)},
            "train_dataloader.dataset.pipeline: Resize: ",
        ),
        (
            {"val_dataloader__dataset__pipeline__1__scale": (0, 0)},
            "val_dataloader.dataset.pipeline: Resize: ",
        ),
        (
            {"model__neck__in_channels": [32, 64, 128, 255]},
            "model.neck.in_channels is [32, 64, 128, 255], but the maps of LTMSwin have [32, 64, "
            "128, 256] channels",
        ),
    ],
)
def test_numbers(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, changes: dict, expected: str
) -> None:
    given = options(**changes)
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path), cfg_options=given))
    assert expected in line


def test_lengths_that_are_meant() -> None:
    """mmengine's -1 saves the last checkpoint only; an optimizer may have schedules of its own."""
    schedules = {"a": [dict(type="MultiStepLR", milestones=[8, 11])], "b": dict(type="CosineLR")}
    hooks = {"checkpoint": dict(interval=-1), "logger": dict(interval=1), "timer": None}
    check_lengths(Config(dict(train_cfg={}, param_scheduler=schedules, default_hooks=hooks)))
    schedules["a"][0]["milestones"] = "8"
    with pytest.raises(UserError, match=r"param_scheduler\.a\.0\.milestones must be a list"):
        check_lengths(Config(dict(train_cfg={}, param_scheduler=schedules)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.b"], "'a.b' is not KEY=VALUE (no spaces around =)"),
        (["a.b", "=", "3"], "'a.b' is not KEY=VALUE"),
        (["a.b=", "3"], "'a.b=' is not KEY=VALUE"),
        (["a=(1,2"], "--cfg-options a=(1,2: Imbalanced brackets exist in (1,2"),
    ],
)
def test_cfg_options(capsys: pytest.CaptureFixture, words: list[str], expected: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--cfg-options", *words])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    good = parser.parse_args(["--cfg-options", "a.b=3", "c=(1,2)", "--cfg-options", "d=x=y"])
    assert good.cfg_options == {"a.b": 3, "c": (1, 2), "d": "x=y"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my photos/a b.json", "my photos/a b.json"),
        ("photos (old)", "photos (old)"),
        ("['traffic light', car]", ["traffic light", "car"]),
        ("traffic light,car", ["traffic light", "car"]),
        ("((1, 2), [x y])", ((1, 2), ["x y"])),
        ("here, there", "here, there"),  # a folder
        ("bbox, segm", ["bbox", "segm"]),
        ("'a b'", "a b"),
        ("[ 0.5 , None , true ]", [0.5, None, True]),
    ],
)
def test_spaces_and_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, value: object
) -> None:
    """mmengine leaves out all spaces: another folder would be read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here, there").mkdir()
    assert parse_value(text) == value


def test_channels_of_a_segmentors_heads() -> None:
    model, backbone = nn.Module(), nn.Module()
    model.backbone = LTMSwin(embed_dims=32, depths=(1, 1), num_heads=(1, 1), strides=(4, 2),
                             out_indices=(0, 1), keep=None)  # fmt: skip
    model.decode_head, model.auxiliary_head = nn.Module(), backbone
    model.decode_head.in_channels, model.decode_head.in_index = (32, 64), (0, 1)
    model.auxiliary_head.in_channels, model.auxiliary_head.in_index = 64, -1
    check_channels(model)
    model.auxiliary_head.in_channels = 32
    with pytest.raises(UserError, match=r"model.auxiliary_head.in_channels is \[32\].*\[64\]"):
        check_channels(model)
    model.decode_head.in_index = (0, 2)
    with pytest.raises(UserError, match="the backbone gives 2 maps"):
        check_channels(model)


def test_channels_of_any_layer() -> None:
    try:
        nn.Conv2d(3, 4, 1)(torch.zeros(1, 5, 2, 2))
    except RuntimeError as error:
        line = explain(error)
    assert line is not None
    assert line.startswith("a layer expects 3 channels and gets 5: in_channels of the neck")


def test_a_metric_that_is_not_measured() -> None:
    def _save_best_checkpoint(metrics: dict[str, float]) -> float:
        return metrics["coco/map"]

    try:
        _save_best_checkpoint({"coco/bbox_mAP": 0.5})
    except KeyError as error:
        line = explain(error)
    assert line is not None
    assert "save_best 'coco/map' is not among the metrics: coco/bbox_mAP;" in line


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (
            SHAPES[::-1],
            "was trained on the classes cross, ring, star, triangle, square, ..., the te",
        ),
        (SHAPES, None),
        (("a", "b"), None),
    ],
)
def test_classes_of_a_checkpoint(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: Options,
    classes: tuple[str, ...],
    expected: str | None,
) -> None:
    """A model that numbers classes otherwise; other names in their place are only said."""
    from mmdet.registry import MODELS

    monkeypatch.setattr("mmengine.runner.runner.Runner.test", lambda self: {})
    model, file = MODELS.build(load_config(SHAPES_CONFIG).model), tmp_path / "model.pth"
    meta = {"dataset_meta": {"classes": tuple(classes)}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, file)
    call = lambda: evaluate(SHAPES_CONFIG, str(file), str(tmp_path), cfg_options=options())  # noqa: E731
    if expected is None:
        call()
        log = next(tmp_path.glob("*/*.log")).read_text()
        assert ("was trained on the classes a, b, the test set" in log) == (len(classes) == 2)
    else:
        assert expected in line_of(capsys, call)


def test_resume_wants_an_optimizer(tmp_path: Path) -> None:
    file = str(tmp_path / "epoch_1.pth")
    state = {"state_dict": {"w": torch.zeros(1)}, "meta": {}, "message_hub": {}}
    torch.save(state, file)
    with pytest.raises(UserError, match=r"no training state \(optimizer, step\), so"):
        check_resumable(file, trust=False)
    torch.save({**state, "optimizer": {}}, file)
    check_resumable(file, trust=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"config": "{folder}"}, "config {folder} is a folder: name a file in it"),
        ({"checkpoint": "{folder}"}, "checkpoint {folder} is a folder: name the file in it"),
        ({"out": "{folder}/x.pkl"}, "--out {folder}/x.pkl is a folder: name a file"),
        ({"out": "{file}/x.pkl"}, "--out {file} is a file: name a folder"),
        ({"show_dir": "{file}"}, "--show-dir {file} is a file: name a folder"),
    ],
)
def test_what_is_in_the_way(
    capsys: pytest.CaptureFixture, tmp_path: Path, arguments: dict, expected: str
) -> None:
    (tmp_path / "folder" / "x.pkl").mkdir(parents=True)
    file = tmp_path / "any.pth"
    file.touch()
    paths = {"folder": str(tmp_path / "folder"), "file": str(file)}
    given = {"config": SHAPES_CONFIG, "checkpoint": str(file), "work_dir": str(tmp_path / "work")}
    given |= {key: value.format(**paths) for key, value in arguments.items()}
    assert expected.format(**paths) in line_of(capsys, lambda: evaluate(**given))


@pytest.mark.parametrize("below", ["", "run"])
def test_a_link_that_leads_nowhere_is_no_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"--work-dir .*: the link .*link leads to no folder"):
        check_folder("--work-dir", tmp_path / "link" / below)


def test_an_output_replaces_no_input(tmp_path: Path) -> None:
    file = tmp_path / "trained.pth"
    file.touch()
    (tmp_path / "same.pth").symlink_to(file)
    check_file("--out", tmp_path / "other.pth", str(file))
    with pytest.raises(UserError, match=r"--out .*same\.pth would replace a file that is read"):
        check_file("--out", tmp_path / "same.pth", "config.py", str(file))


def test_a_folder_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        check_resumable(str(tmp_path), trust=False)


def test_interrupted_while_saving(capsys: pytest.CaptureFixture) -> None:
    """As PyTorch does it: its writer's own error follows the interrupt."""

    def save() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(SystemExit) as ended, clean_errors():
        save()
    assert ended.value.code == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err


# --- what a test writes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "suffix", "expected"),
    [
        (["/d/a/x.jpg", "/d/b/y.jpg"], None, ["x.jpg", "y.jpg"]),
        (["/d/a/x.jpg", "/d/b/x.jpg"], None, ["a/x.jpg", "b/x.jpg"]),
        (["/d/x.jpg", "/d/x.png"], None, ["x.jpg", "x.png"]),
        (["/d/a/x.jpg", "/d/b/y.jpg"], ".png", ["x.png", "y.png"]),
        (["/d/a/x.jpg", "/d/b/x.jpg"], ".png", ["a/x.png", "b/x.png"]),
        (["/d/x.jpg", "/d/x.png"], ".png", ["x.jpg.png", "x.png.png"]),
        (["/d/x.jpg"], None, ["x.jpg"]),
        ([], None, []),
    ],
)
def test_names(files: list[str], suffix: str | None, expected: list[str]) -> None:
    assert unique_names(files, suffix) == dict(zip(files, expected, strict=True))


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Visualizer:
        def add_datasample(self, name: str, image: np.ndarray, out_file: str, **_: object) -> None:
            Image.fromarray(image).save(out_file)

    class Runner:
        visualizer = Visualizer()

    Image.new("RGB", (4, 2)).save(tmp_path / "good.png")
    (tmp_path / "bad.tif").write_bytes(b"six channels, say")
    samples = [BaseDataElement(metainfo={"img_path": str(tmp_path / n)})
               for n in ("bad.tif", "good.png")]  # fmt: skip
    hook = Pictures(str(tmp_path / "out"))
    hook.names = unique_names([sample.img_path for sample in samples])
    hook.after_test_iter(Runner(), 0, None, samples)
    with caplog.at_level(logging.ERROR, logger="mmengine"):
        hook.after_test(Runner())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.png"]
    assert len(hook.failed) == 1
    assert "bad.tif (" in hook.failed[0]


def test_label_maps(tmp_path: Path) -> None:
    labels = torch.tensor([[[0, 1], [2, 3]]])
    for reduced in (False, True):
        sample = BaseDataElement(metainfo={"img_path": "/d/x.jpg", "reduce_zero_label": reduced})
        sample.pred_sem_seg = PixelData(data=labels)
        hook = LabelMaps(str(tmp_path))
        hook.after_test_iter(None, 0, None, [sample])
        assert not hook.failed
        written = np.array(Image.open(tmp_path / "x.png"))
        np.testing.assert_array_equal(written, labels[0].numpy() + reduced)

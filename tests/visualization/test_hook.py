"""The hook in real short trainings: what it writes, and that training does not notice it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import train
from ltm_mm.visualization import MergePicturesHook
from tests.conftest import ROOT, forget_runs
from tests.engine.conftest import SHAPES_CONFIG, data_options

SEGMENTOR = str(ROOT / "configs" / "ltm_efficientvit_upernet_shapes.py")
HOOK = {"type": "ltm_mm.MergePicturesHook", "images": 2, "interval": 2, "dpi": 60}
FAST: dict[str, object] = {
    "train_dataloader.dataset.pipeline.2.scale": (96, 96),
    "val_dataloader.dataset.pipeline.1.scale": (96, 96),
    "model.train_cfg.rpn_proposal.max_per_img": 10,
    "model.train_cfg.rcnn.sampler.num": 8,
    "model.test_cfg.rpn.max_per_img": 10,
}
Run = Callable[..., Runner]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 2, "val": 3})


@pytest.fixture
def run(shapes: Path, tmp_path: Path) -> Run:
    """Train the tiny detector for three steps, a validation after each."""

    def make(name: str, hook: dict | None, **changes: object) -> Runner:
        forget_runs()
        options = {**data_options(shapes), **FAST, "train_cfg.max_epochs": 3}
        options["default_hooks.checkpoint.interval"] = 9
        options |= {key.replace("__", "."): value for key, value in changes.items()}
        if hook:
            options["custom_hooks"] = [hook]
        return train(SHAPES_CONFIG, str(tmp_path / name), cfg_options=options)

    return make


@pytest.mark.slow
def test_training_does_not_notice_it(run: Run, tmp_path: Path) -> None:
    expected = run("without", None).model.state_dict()
    runner = run("with", HOOK)
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    # 2 of 3 images, after the first and the third of three validations.
    images = ("000000", "000001")
    files = [
        f"{k}_{i}_{s}.png" for k in ("merge_map", "predictions") for i in images for s in (1, 3)
    ]
    folder = next((tmp_path / "with").glob("*/vis_data/vis_image"))
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.width == 720
            assert np.asarray(picture).std() > 0


def test_tensorboard(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    file = tmp_path / "photo.png"
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8)[:, None, None], (1, 80, 3))).save(file)
    run(
        "work",
        {**HOOK, "images": [str(file)], "interval": 1},
        visualizer__vis_backends=backends,
        train_cfg__max_epochs=1,
    )
    events = EventAccumulator(str(next(tmp_path.glob("work/*/vis_data/events*")))).Reload()
    tags = events.Tags()["images"]
    assert tags == ["merge_map_photo", "predictions_photo"]
    assert [image.step for image in events.Images(tags[0])] == [1]


def test_segmentor(shapes: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"train_cfg.max_iters": 1, "train_cfg.val_interval": 1}
    for part in ("train", "val"):
        options[f"{part}_dataloader.dataset.data_root"] = str(shapes)
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
    options |= {"train_dataloader.batch_size": 2, "custom_hooks": [{**HOOK, "images": 1}]}
    options["model.backbone.keep"] = (None, None, 36, None)
    train(SEGMENTOR, str(tmp_path), cfg_options=options)
    folder = next(tmp_path.glob("*/vis_data/vis_image"))
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["merge_map_000000_1.png", "predictions_000000_1.png"]


@pytest.mark.parametrize(
    ("hook", "keep", "expected"),
    [
        (HOOK, None, "the model merges no tokens"),
        ({**HOOK, "images": ["none.jpg"]}, "balanced", "none.jpg"),
    ],
)
def test_what_cannot_be_drawn_ends_no_training(
    run: Run, tmp_path: Path, hook: dict, keep: str | None, expected: str
) -> None:
    runner = run("work", hook, model__backbone__keep=keep, train_cfg__max_epochs=2)
    assert runner.iter == 2
    log = next(tmp_path.glob("work/*/*.log")).read_text()
    assert log.count("MergePicturesHook draws nothing") == 1
    assert expected in log.partition("MergePicturesHook draws nothing: ")[2].splitlines()[0]


@pytest.mark.parametrize(
    "arguments", [dict(images=0), dict(images="a.jpg"), dict(images=[]), dict(interval=0)]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MergePicturesHook(**arguments)

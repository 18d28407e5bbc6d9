"""Bad input: one clear line each, a non-zero exit status, no traceback.

Every row goes through the doors that the tools use, up to where the mistake shows.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ltm_mm.analysis.fidelity.tool import run_fidelity
from ltm_mm.engine import evaluate, train
from ltm_mm.errors import UserError, clean_errors, explain
from ltm_mm.export.run import export
from ltm_mm.visualization import visualize
from tests.engine.conftest import SHAPES_CONFIG, line_of

Options = Callable[..., dict[str, object]]
NOT_THERE = "http://127.0.0.1:9/swin.pth"  # the discard port: refused, with or without a network
SWIN = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model__backbone__keep": (50, 25, 25, 25)},
            "LTMSwin: keep of stage 0: 50 is neither a number of tokens from 1 to 49 nor a share",
        ),
        ({"model__backbone__keep": (25, 25, 25)}, "one entry for each of the 4 stages"),
        ({"model__backbone__keep": (25, 25, (25,), 25)}, "keep of stage 2: give None, a number"),
        ({"model__backbone__keep": "quick"}, "choose from light, balanced, fast"),
        ({"model__backbone__mask": "hard"}, "LTMSwin takes no 'mask': it takes "),
        ({"model__backbone__arch": "XXL"}, "unknown arch 'XXL'"),
        (
            {"train_dataloader__dataset__pipeline__2": dict(type="RandomCrop", crop_size=(0, 0))},
            "RandomCrop takes no 'scale'",
        ),
        ({"model__backbone__kep": 5}, "LTMSwin takes no 'kep': did you mean keep"),
        ({"model__backbone__quux": 5}, "LTMSwin takes no 'quux': it takes pretrain_img_size"),
        ({"model__backbone__type": "LTMSwin"}, "did you mean ltm_mm.LTMSwin"),
        ({"model__backbone__type": "ltm_mm.LTMSwim"}, "did you mean ltm_mm.LTMSwin"),
        ({"model__type": "MaskRCN"}, "did you mean MaskRCNN"),
        ({"train_cfg__max_epoch": 3}, "EpochBasedTrainLoop takes no 'max_epoch'"),
        ({"train_dataloader__dataset__typo": 3}, "ShapesInstances takes no 'typo'"),
        ({"optim_wrapper__optimizer__type": "AdamX"}, "did you mean Adam"),
        ({"model__backbone__frozen_stages": 9}, "frozen_stages"),
        ({"model__backbone__keep__x": 9}, "--cfg-options model.backbone.keep.x"),
    ],
)
def test_config_values(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, changes: dict, expected: str
) -> None:
    def call() -> None:
        train(SHAPES_CONFIG, str(tmp_path), cfg_options=options(**changes))

    assert expected in line_of(capsys, call)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"config": "configs/none.py"}, "config configs/none.py does not exist"),
        ({"ltm": "turbo"}, "--ltm turbo: give none, light, balanced, fast"),
        (
            {"ltm": "(99, 9, 9, 9)"},
            "keep of stage 0: 99 is neither a number of tokens from 1 to 49",
        ),
        ({"launcher": "pytorch"}, "use tools/dist_train.sh"),
        ({"resume": "gone.pth"}, "gone.pth does not exist"),
        ({"checkpoint": "gone.pth"}, "gone.pth does not exist"),
    ],
)
def test_arguments_of_train(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: Options,
    arguments: dict,
    expected: str,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    given = {"config": SHAPES_CONFIG, "work_dir": str(tmp_path), "cfg_options": options()}
    assert expected in line_of(capsys, lambda: train(**{**given, **arguments}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="--amp works here: there is a GPU")
def test_amp_without_gpu(capsys: pytest.CaptureFixture, tmp_path: Path, options: Options) -> None:
    def call() -> None:
        train(SHAPES_CONFIG, str(tmp_path), amp=True, cfg_options=options())

    assert "--amp needs a GPU" in line_of(capsys, call)


def test_ltm_on_a_resnet(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    source = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
    line = line_of(capsys, lambda: train(source, str(tmp_path), ltm="balanced"))
    assert "model.backbone is ResNet (50). It supports SwinTransformer" in line


def test_coco_that_is_not_there(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    changes = {"model.backbone.init_cfg": None, "train_dataloader.dataset.data_root": "no/coco"}
    line = line_of(capsys, lambda: train(SWIN, str(tmp_path), ltm="light", cfg_options=changes))
    assert "no/coco/annotations/instances_train2017.json" in line
    assert "train_dataloader.dataset.ann_file" in line
    assert "set --cfg-options train_dataloader.dataset.data_root=DIR" in line


def test_missing_annotation_file_of_the_metric(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options
) -> None:
    changes = options(val_evaluator__ann_file="no/such.json")
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path), cfg_options=changes))
    assert "no/such.json, which val_evaluator.ann_file names, does not exist" in line
    assert "val_evaluator.ann_file=FILE" in line


@pytest.mark.parametrize(
    "address",
    [
        {
            "model.backbone.init_cfg.checkpoint": NOT_THERE,
            "model.backbone.init_cfg.type": "Pretrained",
        },
        {"model.backbone.pretrained": NOT_THERE},
        {"model.backbone.init_cfg": NOT_THERE},
    ],
)
def test_no_internet(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, address: dict
) -> None:
    changes = {**options(), **address}
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path), cfg_options=changes))
    option = next(key for key, value in address.items() if value == NOT_THERE)
    assert f"could not download {NOT_THERE} (" in line
    off = option.removesuffix(".checkpoint")
    assert f"{option} names it: set --cfg-options {option}=FILE, or {off}=None to start" in line


def test_no_internet_with_a_backbone_of_mmdet(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options
) -> None:
    config = tmp_path / "resnet.py"
    config.write_text(
        f"_base_ = {SHAPES_CONFIG!r}\nmodel = dict(backbone=dict(_delete_=True, "
        f"type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', "
        f"checkpoint={NOT_THERE!r})), neck=dict(in_channels=[64, 128, 256, 512]))\n"
    )
    line = line_of(capsys, lambda: train(str(config), str(tmp_path), cfg_options=options()))
    assert "model.backbone.init_cfg=None" in line


# --- data sets ----------------------------------------------------------------------------


@pytest.fixture
def shapes_copy(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the shapes data set that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def own_options(options: Options, root: Path) -> dict[str, object]:
    """As a user's own COCO-format data set, which nothing draws when it is missing."""
    classes = json.loads((root / "annotations" / "instances_train.json").read_text())["categories"]
    changes = options(root)
    for part in ("train", "val", "test"):
        changes[f"{part}_dataloader.dataset.type"] = "CocoDataset"
        names = tuple(c["name"] for c in classes)
        changes[f"{part}_dataloader.dataset.metainfo"] = {"classes": names}
    return changes


def remove_annotations(root: Path) -> None:
    (root / "annotations" / "instances_train.json").unlink()


def cut_annotations(root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text()[:500])


def remove_images(root: Path) -> None:
    shutil.rmtree(root / "train")


def empty_annotations(root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": [], "annotations": []}))


def remove_instances(root: Path) -> None:
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))


def damage_all_images(root: Path) -> None:
    for file in (root / "train").iterdir():
        file.write_bytes(b"no image")


def damage_validation_image(root: Path) -> None:
    min((root / "val").iterdir()).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove_annotations, "instances_train.json, which train_dataloader.dataset.ann_file names"),
        (cut_annotations, "instances_train.json is not valid JSON"),
        (empty_annotations, "train_dataloader has no image left"),
        (remove_instances, "train_dataloader.dataset has no instance of its classes (circle"),
        (remove_images, "which train_dataloader.dataset.data_prefix.img names, does not exist"),
        (damage_all_images, "20 images in a row cannot be used, the last one is"),
    ],
)
def test_data_set(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: Options,
    shapes_copy: Path,
    damage: Callable[[Path], None],
    expected: str,
) -> None:
    changes = own_options(options, shapes_copy)
    damage(shapes_copy)
    work = str(tmp_path / "work")
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, work, cfg_options=changes))
    assert expected in line
    assert str(shapes_copy) in line


def test_misspelt_classes(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    changes = own_options(options, shapes_copy)
    changes["train_dataloader.dataset.metainfo"] = {"classes": ("Hazelnut",)}
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path), cfg_options=changes))
    assert "0 of the 1 classes of train_dataloader.dataset" in line
    assert (
        "it lacks Hazelnut and has circle, square, triangle, star, ring, ...; spell train_" in line
    )
    assert "dataset.metainfo.classes as there" in line


def test_classes_of_an_annotation_file_without_categories(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    changes = own_options(options, shapes_copy)
    file = shapes_copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    del content["categories"]
    file.write_text(json.dumps(content))
    line = line_of(capsys, lambda: train(SHAPES_CONFIG, str(tmp_path), cfg_options=changes))
    assert f"{file} lacks 'categories', a list" in line


# --- checkpoints --------------------------------------------------------------------------


def whole_model(tmp_path: Path, **changes: object) -> str:
    """An untrained model's checkpoint, as mmengine writes it."""
    from mmdet.registry import MODELS

    from ltm_mm.engine import load_config

    cfg = load_config(SHAPES_CONFIG, changes)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, path)
    return str(path)


def cut_short(tmp_path: Path) -> str:
    path = Path(whole_model(tmp_path))
    path.write_bytes(path.read_bytes()[:-2000])
    return str(path)


def pickled(tmp_path: Path) -> str:
    path = tmp_path / "pickled.pth"
    torch.save({"state_dict": {}, "hook": np.testing.assert_allclose}, path)
    return str(path)


def picture(tmp_path: Path) -> str:
    cv2.imwrite(str(tmp_path / "picture.png"), np.zeros((8, 8, 3), np.uint8))
    return str((tmp_path / "picture.png").rename(tmp_path / "picture.pth"))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: "gone.pth", "gone.pth does not exist"),
        (cut_short, "truncated"),
        (picture, "not a PyTorch checkpoint"),
        (pickled, "--trust-checkpoint"),
        (
            lambda path: whole_model(path, **{"model.backbone.depths": (2, 2, 6, 2)}),
            "blocks (2, 2, 6, 2)) does not fit LTMSwin",
        ),
        (
            lambda path: whole_model(path, **{"model.roi_head.bbox_head.num_classes": 80}),
            "fc_cls.weight: checkpoint (81, 256), model (7, 256)",
        ),
    ],
)
def test_checkpoint_to_evaluate(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    options: Options,
    make: Callable[[Path], str],
    expected: str,
) -> None:
    file = make(tmp_path)
    line = line_of(
        capsys, lambda: evaluate(SHAPES_CONFIG, file, str(tmp_path), cfg_options=options())
    )
    assert expected in line
    assert Path(file).name in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"out": "predictions.json"}, "--out predictions.json: the file's name must end in .pkl"),
        ({"tta": True}, "has no tta_model"),
    ],
)
def test_arguments_of_evaluate(
    capsys: pytest.CaptureFixture, tmp_path: Path, arguments: dict, expected: str
) -> None:
    file = tmp_path / "any.pth"
    file.touch()
    line = line_of(capsys, lambda: evaluate(SHAPES_CONFIG, str(file), str(tmp_path), **arguments))
    assert expected in line


def test_image_that_cannot_be_evaluated(
    capsys: pytest.CaptureFixture, tmp_path: Path, options: Options, shapes_copy: Path
) -> None:
    """Without it the metrics would be of another data set, and nobody would know."""
    damage_validation_image(shapes_copy)
    # The error comes out of a worker.
    changes = options(shapes_copy, test_dataloader__num_workers=1)
    checkpoint = whole_model(tmp_path)
    line = line_of(
        capsys, lambda: evaluate(SHAPES_CONFIG, checkpoint, str(tmp_path), cfg_options=changes)
    )
    assert f"{min((shapes_copy / 'val').iterdir())} is empty: replace it" in line


# --- the mechanism ------------------------------------------------------------------------


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), clean_errors():
        _ = 1 / 0
    with pytest.raises(ValueError, match="from inside"), clean_errors():
        raise ValueError("from inside, not from an argument")


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError), clean_errors(debug=True):
        raise UserError("wrong")
    monkeypatch.setenv("LTM_DEBUG", "1")
    with pytest.raises(UserError), clean_errors():
        raise UserError("wrong")


def test_interrupt(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended, clean_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "--resume" in capsys.readouterr().err


def test_one_line_whatever_the_message() -> None:
    assert explain(UserError("a\n  b")) == "a b"


def test_full_disk() -> None:
    assert explain(OSError(28, "No space left on device", "epoch_1.pth")) == (
        "epoch_1.pth: No space left on device"
    )


def save_with_mmengine(file: str) -> None:
    from mmengine.runner.checkpoint import save_checkpoint

    save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, file)


def write_lines(file: str) -> None:
    with open(file, "w") as out:
        out.write("x" * 100_000)


def figure(file: str) -> None:
    from matplotlib.figure import Figure

    Figure().savefig(file, format="png")


NOISE = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save(torch.zeros(100_000), file),
        lambda file: torch.save(torch.zeros(9), file, _use_new_zipfile_serialization=False),
        save_with_mmengine,
        write_lines,
        figure,
        lambda file: json.dump(list(range(9999)), open(file, "w")),  # noqa: SIM115
        lambda file: Path(file).write_text("x"),
        lambda file: Image.fromarray(NOISE).save(file, format="PNG"),
        lambda file: np.save(open(file, "wb"), NOISE),  # noqa: SIM115
    ],
)
def test_full_disk_names_the_file(
    capsys: pytest.CaptureFixture, write: Callable[[str], object]
) -> None:
    line = line_of(capsys, lambda: write("/dev/full"))
    assert line in (
        "error: /dev/full: No space left on device",
        "error: /dev/full cannot be written: is the disk full?",
    )


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda p: evaluate(p["pth"], p["py"]),
            "{pth} is a checkpoint by its name, where a config",
        ),
        (lambda p: train(p["pth"]), "{pth} is a checkpoint by its name, where a config is wanted"),
        (lambda p: train(p["jpg"]), "{jpg} is a photo by its name, where a config is wanted"),
        (
            lambda p: train(SHAPES_CONFIG, p["work"], checkpoint=p["py"]),
            "{py} is a config by its name, where a checkpoint is wanted: are arguments swapped?",
        ),
        (
            lambda p: train(SHAPES_CONFIG, p["work"], resume=p["py"]),
            "{py} is a config by its name, where a checkpoint is wanted",
        ),
        (
            lambda p: evaluate(SHAPES_CONFIG, p["jpg"], p["work"]),
            "{jpg} is a photo by its name, where a checkpoint is wanted",
        ),
        (
            lambda p: visualize(SHAPES_CONFIG, p["pth"], p["jpg"]),
            "{pth} is a checkpoint by its name, where a photo is wanted",
        ),
        (
            lambda p: run_fidelity(SHAPES_CONFIG, p["jpg"], p["pth"], out=p["work"]),
            "{pth} is a checkpoint by its name, where a photo is wanted",
        ),
        (
            lambda p: run_fidelity("ltm-swin-t", p["py"], p["jpg"], out=p["work"]),
            "{py} is a config by its name, where a checkpoint is wanted",
        ),
        (lambda p: export(p["pth"], p["py"]), "{pth} is a checkpoint by its name, where a config"),
        (lambda p: train(SHAPES_CONFIG, p["pth"]), "--work-dir {pth} is a file: name a folder"),
        (
            lambda p: evaluate(SHAPES_CONFIG, p["pth"], f"{p['jpg']}/a"),
            "--work-dir {jpg}/a cannot be made: {jpg} is a file; name a folder",
        ),
        (
            lambda p: train(SHAPES_CONFIG, cfg_options={"work_dir": p["pth"]}),
            "work_dir {pth} is a file: name a folder",
        ),
    ],
)
def test_arguments_that_are_swapped(
    capsys: pytest.CaptureFixture, tmp_path: Path, call: Callable[[dict], object], expected: str
) -> None:
    paths = {suffix: str(tmp_path / f"a.{suffix}") for suffix in ("py", "pth", "jpg")}
    for file in paths.values():
        Path(file).touch()
    paths["work"] = str(tmp_path / "work")
    assert expected.format(**paths) in line_of(capsys, lambda: call(paths))


def test_batch_normalisation_of_one_image(capsys: pytest.CaptureFixture) -> None:
    pooled = torch.zeros(1, 4, 1, 1)
    line = line_of(capsys, lambda: torch.nn.BatchNorm2d(4).train()(pooled))
    assert "train_dataloader.batch_size to 2 or more" in line


def test_rank_is_named(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit), clean_errors():
        raise UserError("wrong")
    assert capsys.readouterr().err == "error (rank 3): wrong\n"

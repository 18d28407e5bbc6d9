"""Files of whole models against mmdet and mmseg, at sizes they were not traced with."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn
from torch.export import ExportedProgram

from ltm_mm.engine import evaluate, load_config
from ltm_mm.engine.photos import class_names
from ltm_mm.errors import UserError
from ltm_mm.export import compare, export_program, open_file, save_onnx, save_program, whole_model
from ltm_mm.export.calibration import images
from ltm_mm.export.evaluate import use_file
from ltm_mm.export.files import import_package
from ltm_mm.export.heads import SUPPORTED, WholeModel
from ltm_mm.export.reference import paste
from tests.conftest import ROOT
from tests.export import tiny
from tests.export.boxes import CONFIG, TRACED, Boxes, write_boxes

OTHERS = [(150, 70), (96, 160), (81, 90)]


MODELS = {**tiny.DETECTORS, **{f"mmseg-{name}": make for name, make in tiny.SEGMENTORS.items()}}
CASES = [(n, k, f) for n in MODELS for k in (None, "balanced") for f in ("onnx", "xml", "pt2")]
# Quick enough to be run every time. Their images are padded: a plain area, whose tokens are alike.
MODELS["few-levels"] = lambda keep: tiny.dense("_base_/models/retinanet_r50_fpn.py", keep, few=True)
MODELS["mmseg-one-stage"] = lambda keep: tiny.encoder_decoder("fcn_r50-d8", keep, stages=1)
QUICK = [("few-levels", (25, None), "onnx"), ("mmseg-one-stage", (25,), "onnx")]


@lru_cache(maxsize=1)
def traced(name: str, keep: object) -> tuple[WholeModel, ExportedProgram]:
    """A model and its program, of which all files are written: tracing takes longest."""
    whole = whole_model(MODELS[name](keep))
    return whole, export_program(whole, TRACED, smallest=whole.smallest)


def written(name: str, keep: object, format: str, folder: Path) -> tuple[WholeModel, Path]:
    """A model and its file; OpenVINO's is made of the ONNX file, if that is there."""
    whole, program = traced(name, keep)
    path = folder / f"{name}{'' if keep is None else '-merging'}.{format}"
    if format == "pt2":
        save_program(program, path, {})
        return whole, path
    pytest.importorskip("onnxscript")
    if format == "xml":
        pytest.importorskip("openvino")
        from ltm_mm.export.openvino import convert_onnx

        _, onnx = written(name, keep, "onnx", folder)
        convert_onnx(onnx, path, {})
    elif not path.is_file():
        save_onnx(program, path, whole.outputs, {})
    return whole, path


@pytest.mark.parametrize(
    ("name", "keep", "format"),
    [*QUICK[1:], *(pytest.param(*case, marks=pytest.mark.slow) for case in (*QUICK[:1], *CASES))],
)
def test_files_are_the_model(name, keep, format, tmp_path_factory):
    """Detections, masks and logits are mmdet's and mmseg's own, at four sizes and two batches."""
    whole, path = written(name, keep, format, tmp_path_factory.getbasetemp())
    differences = list(compare(whole, open_file(path).run, [TRACED, *OTHERS], batches=(1, 2)))
    assert len(differences) == 8
    for difference in differences:
        assert difference.of_model is None, difference  # not only as near as the model is to itself
        assert difference.lost == 0
        assert difference.detections is None or difference.detections > 5


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """An ONNX file for images of 160 x 160 of the built-in shapes."""
    pytest.importorskip("onnxscript")
    return write_boxes(tmp_path_factory.mktemp("boxes") / "fixed.onnx")


def test_a_file_says_how_to_run_it(fixed):
    metadata = open_file(fixed).metadata
    assert metadata["task"] == "instance segmentation"
    assert metadata["classes"] == ["circle", "square", "triangle", "star", "ring", "cross"]
    assert metadata["channels"] == "RGB"
    assert metadata["mean"] == [1, 2, 3]
    assert metadata["resize"] == {"scale": [160, 160], "keep_ratio": True}
    assert metadata["config"] == "ltm_swin_maskrcnn_shapes.py"


def test_the_script_of_the_docs_draws(fixed, tmp_path):
    """Nothing of this package runs in it; boxes are in the photo's pixels."""
    Image.new("RGB", (320, 240)).save(tmp_path / "photo.png")
    script = ROOT / "docs" / "run_onnx.py"
    assert "ltm_mm" not in script.read_text()
    done = subprocess.run(
        [sys.executable, script, fixed, tmp_path / "photo.png", tmp_path / "out.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "circle 0.90 (20, 40, 100, 120)",
        "square 0.60 (140, 20, 180, 60)",
    ]
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (240, 320, 3)
    assert drawn[100, 40].any()  # inside of the mask
    assert not drawn[100, 80].any()  # of the box only
    assert drawn[120, 60].any()  # its border
    assert not drawn[200, 200].any()


@pytest.fixture
def shapes(tmp_path):
    """The options of a small set of the built-in shapes."""
    data = ROOT / "data" / "shapes"
    if not data.is_dir():
        pytest.skip("draws the built-in shapes first: tools/train.py on a config of them does")
    return {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False,
            "test_dataloader.dataset.indices": 4}  # fmt: skip


def test_a_file_is_evaluated_as_a_checkpoint_is(fixed, shapes, tmp_path, capsys):
    metrics = evaluate(CONFIG, str(fixed), str(tmp_path / "w"), cfg_options=shapes)
    assert 0 <= metrics["coco/bbox_mAP"] < 0.5
    assert "coco/segm_mAP" in metrics
    with pytest.raises(UserError, match="--ltm changes the model"):
        evaluate(CONFIG, str(fixed), str(tmp_path / "w"), ltm="fast")


def test_images_that_are_too_small_for_a_file_are_named(shapes, tmp_path):
    """DINO and others need more pixels than other detectors."""
    metadata = {"made_by": '"x"', "task": '"detection"', "smallest": "200"}
    save_program(export_program(Boxes(), TRACED), tmp_path / "a.pt2", metadata)
    with pytest.raises(UserError, match="200 x 200 pixels and more, got 160 x 160: resize them"):
        evaluate(CONFIG, str(tmp_path / "a.pt2"), str(tmp_path / "w"), cfg_options=shapes)


def test_images_to_calibrate_on_are_the_test_pipelines(shapes, tmp_path):
    cfg = load_config(CONFIG)
    arrays = images(cfg, 3)
    assert [x.shape for x in arrays] == [(1, 3, 160, 160)] * 3
    assert not torch.equal(arrays[0], arrays[1])
    assert all(abs(x.mean()) < 3 and x.min() < 0 for x in arrays)
    (tmp_path / "none.json").write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
    cfg.test_dataloader.dataset.ann_file = str(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"calibrates on test data, and .*none.json names no image"):
        images(cfg, 3)


def test_a_file_of_another_config_is_refused(fixed):
    other = Config.fromfile(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
    with pytest.raises(UserError, match="does instance segmentation, which is not what"):
        use_file(other, str(fixed))
    cfg = Config.fromfile(CONFIG)
    save_onnx(
        export_program(Boxes(), TRACED), fixed.with_name("backbone.onnx"), list("abcd"),
        {"made_by": '"ltm_mm"', "task": '"features of a backbone"'},
    )  # fmt: skip
    with pytest.raises(UserError, match="does features of a backbone, which is not what"):
        use_file(cfg, str(fixed.with_name("backbone.onnx")))
    cfg.test_dataloader.dataset.metainfo = dict(classes=("cat", "dog"))
    assert class_names(cfg) == ["cat", "dog"]
    with pytest.raises(UserError, match=r"knows 6 classes \(circle, square, triangle, ...\), the"):
        use_file(cfg, str(fixed))


def test_files_that_cannot_be_run_are_named(fixed, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx does not exist"):
        open_file(tmp_path / "gone.onnx")
    for name in ("bad.onnx", "bad.pt2"):
        (tmp_path / name).write_bytes(b"no model")
        with pytest.raises(ValueError, match=rf"{name} is damaged, or no such file"):
            open_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"a.txt is none of .onnx, .xml, .pt2"):
        open_file(tmp_path / "a.txt")
    save_onnx(export_program(Boxes(), TRACED), tmp_path / "bare.onnx", ["a", "b", "c", "d"], {})
    with pytest.raises(UserError, match=r"was not written by tools/export\.py"):
        use_file(Config.fromfile(CONFIG), str(tmp_path / "bare.onnx"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"x needs openvino: pip install 'ltm_mm\[openvino\]'"):
        import_package("openvino", "x")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda xml: xml.write_text("no model"), "it holds no <net>"),
        (lambda xml: xml.write_bytes(xml.read_bytes()[:3000]), r"a\.xml is damaged"),
        (lambda xml: xml.with_suffix(".bin").unlink(), r"weights are not beside it, in a\.bin"),
        (lambda xml: os.truncate(xml.with_suffix(".bin"), 999), r"a\.xml is damaged"),
        (lambda xml: other_weights(xml), r"a\.bin is damaged, or of another export"),
    ],
)
def test_openvino_files_that_cannot_be_run_are_named(tmp_path, damage, says):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    from ltm_mm.export.openvino import save_openvino

    xml = tmp_path / "a.xml"
    save_openvino(export_program(nn.Conv2d(3, 64, 3), TRACED), xml, ["stage0"], {})
    open_file(xml)
    damage(xml)
    with pytest.raises(ValueError, match=says):
        open_file(xml)


def other_weights(xml: Path) -> None:
    weights = bytearray(xml.with_suffix(".bin").read_bytes())
    weights[100] ^= 1
    xml.with_suffix(".bin").write_bytes(weights)


def test_other_programs_are_named(tmp_path, caplog):
    """Nor does PyTorch write a traceback."""
    path = tmp_path / "a.pt2"
    torch.save({}, path)
    with pytest.raises(
        ValueError, match=r"a\.pt2 is damaged, or no such file: it holds no program"
    ):
        open_file(path)
    assert not caplog.records
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(1),)), path)
    with pytest.raises(UserError, match=r"was not written by tools/export\.py"):
        use_file(Config.fromfile(CONFIG), str(path))


def test_program_files_keep_what_they_say(tmp_path):
    metadata = {"made_by": json.dumps("ltm_mm"), "smallest": "33"}
    save_program(export_program(Boxes(), TRACED), tmp_path / "a.pt2", metadata)
    file = open_file(tmp_path / "a.pt2")
    assert file.metadata == {"made_by": "ltm_mm", "smallest": 33}
    assert file.run(torch.zeros(2, 3, 40, 50))[0].shape == (2, 3, 4)
    with pytest.raises(UserError, match="takes images of 33 x 33 pixels and more, got 32 x 50"):
        file.run(torch.zeros(1, 3, 32, 50))


def test_masks_over_the_image_are_brought_to_its_size():
    """Logits of the padded image, of which a part is none of the image."""
    masks = torch.full((1, 8, 8), -1.0)
    masks[:, :4, 2:] = 1
    metadata = {"masks": "image", "pad_divisor": 32}
    (pasted,) = paste(masks, torch.zeros(1, 4), metadata, (32, 20))
    assert pasted.shape == (32, 20)
    assert pasted[:15, 9:].all()
    assert not pasted[18:].any()
    assert not pasted[:, :6].any()
    (larger,) = paste(masks, torch.zeros(1, 4), metadata, (32, 20), (64, 40))
    assert larger.shape == (64, 40)
    assert larger[:30, 18:].all()


def test_the_page_has_the_list_that_the_tool_prints():
    page = (ROOT / "docs" / "production.md").read_text()
    for kind, outputs in SUPPORTED.items():
        assert f"| {kind} | {outputs} |" in page


def test_bf16_is_for_openvino_on_processors_that_have_it(fixed, monkeypatch, tmp_path):
    for name in (str(fixed), "epoch_8.pth"):
        with pytest.raises(UserError, match=rf"--bf16 is an option of OpenVINO, and .*{name}"):
            use_file(Config.fromfile(CONFIG), name, bf16=True)
    openvino = pytest.importorskip("openvino")
    from ltm_mm.export.openvino import convert_onnx

    path = tmp_path / "a.xml"
    convert_onnx(fixed, path, {})
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(UserError, match="this processor has no bf16"):
        open_file(path, bf16=True)
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"])
    assert len(open_file(path, bf16=True).run(torch.zeros(1, 3, 40, 50))) == 4

"""Predictions on photos, folders and videos are those of a test, and no photo ends them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from ltm_mm.datasets import draw_image, ensure_shapes
from ltm_mm.engine import evaluate, load_config
from ltm_mm.errors import UserError
from ltm_mm.inference import predict
from ltm_mm.inference.inputs import PictureReader, find_sources
from ltm_mm.inference.run import data_facts
from tests.conftest import ROOT, forget_runs
from tests.engine.conftest import SHAPES_CONFIG, data_options, line_of
from tests.export.boxes import write_boxes

SEGMENTOR = str(ROOT / "configs" / "ltm_swin_upernet_shapes.py")
SMALL: dict[str, object] = {
    "test_dataloader.dataset.pipeline.1.scale": (96, 96),
    "model.test_cfg.rpn.max_per_img": 10,
    "model.test_cfg.rcnn.score_thr": 0.0,
}
Weights = Callable[[str], str]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 1, "val": 3})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Files with drawn weights of a config's model."""
    folder = tmp_path_factory.mktemp("weights")

    def make(config: str) -> str:
        file = folder / f"{Path(config).stem}.pth"
        cfg = load_config(config)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        for name, parameter in model.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight", "mask_head.conv_logits.weight")):
                parameter.data *= 20  # scores and masks that differ from one another
        torch.save({"state_dict": model.state_dict()}, file)
        return str(file)

    return make


def detections(results: Path, images: Path) -> dict[str, list[tuple]]:
    """File name -> (class, score, box, mask) of what was found, as COCO's own reader has it."""
    by_image: dict[str, list[tuple]] = {}
    data = COCO(str(images))
    read = data.loadRes(str(results))
    for entry in read.dataset["annotations"]:
        image = data.imgs[entry["image_id"]]
        name = data.cats[entry["category_id"]]["name"]
        mask = entry.get("segmentation")
        mask = mask["counts"] if isinstance(mask, dict) else None
        where = (Path(image["file_name"]).name, image.get("frame"))
        by_image.setdefault(where, []).append((name, entry["score"], tuple(entry["bbox"]), mask))
    return {key: sorted(entries, key=str) for key, entries in by_image.items()}


@pytest.mark.parametrize(
    ("kind", "batch"), [pytest.param("bbox", 1, marks=pytest.mark.slow), ("segm", 3)]
)
def test_detections_are_those_of_a_test(
    kind: str, batch: int, shapes: Path, weights: Weights, tmp_path: Path
) -> None:
    tested = {"test_evaluator.format_only": True, "test_evaluator.outfile_prefix": f"{tmp_path}/t"}
    options = {k: v for k, v in data_options(shapes).items() if k.startswith("test")} | SMALL
    options["test_dataloader.batch_size"] = batch
    evaluate(SHAPES_CONFIG, weights(SHAPES_CONFIG), str(tmp_path), cfg_options=options | tested)
    forget_runs()
    photos = [str(shapes / "val")]
    out = predict(
        SHAPES_CONFIG,
        weights(SHAPES_CONFIG),
        photos,
        str(tmp_path / "out"),
        batch_size=batch,
        score_thr=0.0,
        cfg_options=SMALL,
    )
    expected = detections(
        tmp_path / f"t.{kind}.json", shapes / "annotations" / "instances_val.json"
    )
    found = detections(out / f"predictions.{kind}.json", out / "images.json")
    assert len(expected) == 3
    assert found == expected
    assert sorted(f.name for f in (out / "pictures").iterdir()) == sorted(
        f"{f.stem}.jpg" for f in (shapes / "val").iterdir()
    )


@pytest.mark.parametrize(
    ("suffix", "needed"), [(".onnx", "onnxscript"), (".xml", "openvino"), (".pt2", "torch")]
)
def test_a_file_predicts_what_it_is_tested_with(
    suffix: str, needed: str, shapes: Path, tmp_path: Path
) -> None:
    pytest.importorskip(needed)
    file = str(write_boxes(tmp_path / f"boxes{suffix}"))
    tested = {"test_evaluator.format_only": True, "test_evaluator.outfile_prefix": f"{tmp_path}/t"}
    options = {k: v for k, v in data_options(shapes).items() if k.startswith("test")}
    of_training = tmp_path / Path(SHAPES_CONFIG).name
    of_training.write_text("# what was trained in this work dir")
    evaluate(SHAPES_CONFIG, file, str(tmp_path), cfg_options=options | tested)
    assert of_training.read_text() == "# what was trained in this work dir"
    forget_runs()
    photos = [str(shapes / "val")]
    out = predict(SHAPES_CONFIG, file, photos, str(tmp_path / "out"), batch_size=2, score_thr=0.0)
    for kind in ("bbox", "segm"):
        expected = detections(
            tmp_path / f"t.{kind}.json", shapes / "annotations" / "instances_val.json"
        )
        assert [len(found) for found in expected.values()] == [2, 2, 2]
        assert detections(out / f"predictions.{kind}.json", out / "images.json") == expected


def test_label_maps_are_those_of_a_test(shapes: Path, weights: Weights, tmp_path: Path) -> None:
    options = {
        "test_dataloader.dataset.data_root": str(shapes),
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "test_dataloader.dataset.pipeline.1.scale": (96, 96),
    }
    checkpoint = weights(SEGMENTOR)
    evaluate(SEGMENTOR, checkpoint, str(tmp_path), out=f"{tmp_path}/tested", cfg_options=options)
    forget_runs()
    out = predict(
        SEGMENTOR,
        checkpoint,
        [str(shapes / "val")],
        str(tmp_path / "out"),
        cfg_options=options,
        pictures=False,
    )
    files = sorted((tmp_path / "tested").iterdir())
    assert len(files) == 3
    for file in files:
        expected, found = (np.asarray(Image.open(f)) for f in (file, out / "labels" / file.name))
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(found, expected)
    assert not (out / "pictures").exists()


@pytest.mark.parametrize(
    ("name", "count", "reduced"),
    [
        ("ltm_swin_upernet.py", 150, True),
        ("ltm_swin_upernet_fruits_nuts.py", 4, False),
        ("ltm_swin_maskrcnn.py", 80, False),
        ("ltm_swin_maskrcnn_fruits_nuts.py", 3, False),
    ],
)
def test_what_is_known_of_the_data(name: str, count: int, reduced: bool) -> None:
    """Without its files: those of a user who only predicts are not there."""
    metainfo, found = data_facts(load_config(ROOT / "configs" / name))
    assert (len(metainfo["classes"]), found) == (count, reduced)
    assert len(metainfo.get("palette", metainfo["classes"])) == count


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as people have them: odd photos, damaged ones, and a video."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = draw_image("val", 0)[0]
    fine = Image.fromarray(pixels)
    fine.save(folder / "a_fine.png")
    fine.convert("L").save(folder / "b_grey.png")
    cv2.imwrite(str(folder / "c_16bit.png"), pixels[..., ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x112] = 6  # turned a quarter
    fine.crop((0, 0, 120, 90)).save(folder / "d_turned.jpg", exif=exif)
    fine.crop((0, 0, 1, 1)).save(folder / "e_pixel.png")
    fine.resize((3000, 4)).save(folder / "f_row.png")
    fine.save(folder / "g_whole.jpg")
    half = (folder / "g_whole.jpg").read_bytes()
    (folder / "g_damaged.jpg").write_bytes(half[: len(half) // 2])
    (folder / "h_empty.png").touch()
    (folder / "notes.txt").write_text("not a photo")
    size = (pixels.shape[1], pixels.shape[0])
    video = cv2.VideoWriter(str(folder / "i_clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, size)
    for _ in range(3):
        video.write(pixels[..., ::-1])
    video.release()
    return folder


def test_no_photo_ends_the_others(
    photos: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = dict(out_dir=str(out), score_thr=0.0, cfg_options=SMALL)
    line = line_of(
        capsys,
        lambda: predict(SHAPES_CONFIG, weights(SHAPES_CONFIG), [str(photos)], **options),
    )
    assert "3 of 12 pictures have no prediction, first " in line
    images = json.loads((out / "images.json").read_text())["images"]
    named = [(Path(i["file_name"]).name, i.get("frame")) for i in images]
    whole = ["a_fine.png", "b_grey.png", "c_16bit.png", "d_turned.jpg", "e_pixel.png"]
    expected = [(n, None) for n in [*whole, "g_whole.jpg"]] + [("i_clip.mp4", k) for k in range(3)]
    assert sorted(named, key=str) == sorted(expected, key=str)
    by_image = detections(out / "predictions.segm.json", out / "images.json")
    # 16 bits are the same photo, a video's frames are alike
    assert by_image["a_fine.png", None] == by_image["c_16bit.png", None]
    assert by_image["i_clip.mp4", 0] == by_image["i_clip.mp4", 2]
    turned = next(i for i in images if i["file_name"].endswith("d_turned.jpg"))
    assert (turned["width"], turned["height"]) == (90, 120)
    video = cv2.VideoCapture(str(out / "pictures" / "i_clip.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 5)


def test_hidden_files_and_links_to_nothing(tmp_path: Path) -> None:
    """macOS leaves a ``._*`` beside every photo; a link to nothing does not end a folder's run."""
    for name in ("b.jpg", "._b.jpg"):
        (tmp_path / name).touch()
    link = tmp_path / "a.jpg"
    link.symlink_to(tmp_path / "gone.jpg")
    assert find_sources([str(tmp_path)]) == [link, tmp_path / "b.jpg"]
    (picture,) = PictureReader(Compose([dict(type="LoadImageFromFile")])).read(link)
    assert picture.fault == "is a link to a file that is gone"


def test_every_fault_is_named(
    photos: Path, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError):
        predict(
            SEGMENTOR,
            weights(SEGMENTOR),
            [str(photos)],
            str(tmp_path / "out"),
            cfg_options={"test_dataloader.dataset.pipeline.1.scale": (96, 96)},
        )
    said = capsys.readouterr().err
    assert f"left out: {photos}/g_damaged.jpg is damaged or no image" in said
    assert f"left out: {photos}/h_empty.png is empty" in said
    assert f"not drawn: {photos}/e_pixel.png" in said  # mmseg cannot; its label map is there
    assert f"left out: {photos}/f_row.png of 3000 x 4 pixels" in said
    labels = tmp_path / "out" / "labels"
    assert len(list(labels.glob("*.png"))) == 6
    assert len(list((labels / "i_clip").glob("*.png"))) == 3


def test_own_classes_have_colours(shapes: Path, weights: Weights, tmp_path: Path) -> None:
    """Data of one's own has class names and no palette; every box gets a frame in a colour."""
    config = str(ROOT / "configs" / "ltm_swin_fasterrcnn_fruits_nuts.py")
    options = {k: v for k, v in SMALL.items() if "pipeline" not in k}
    out = predict(
        config,
        weights(config),
        [str(shapes / "val")],
        str(tmp_path),
        score_thr=0.0,
        cfg_options=options,
    )
    for file in (out / "pictures").iterdir():
        photo = Image.open(shapes / "val" / f"{file.stem}.png")
        change = np.abs(np.asarray(Image.open(file), int) - np.asarray(photo, int))
        assert (change.max(-1) > 64).sum() > 100


def test_a_turned_photo_is_the_photo_turned(photos: Path, weights: Weights, tmp_path: Path) -> None:
    upright = photos / "upright.png"
    ImageOps.exif_transpose(Image.open(photos / "d_turned.jpg")).save(upright)
    out = predict(
        SHAPES_CONFIG,
        weights(SHAPES_CONFIG),
        [str(photos / "d_turned.jpg"), str(upright)],
        str(tmp_path / "out"),
        score_thr=0.0,
        cfg_options=SMALL,
    )
    by_image = detections(out / "predictions.bbox.json", out / "images.json")
    assert by_image["d_turned.jpg", None] == by_image["upright.png", None]


def test_options_change_the_result(shapes: Path, weights: Weights, tmp_path: Path) -> None:
    checkpoint, source = weights(SHAPES_CONFIG), [str(shapes / "val")]
    scores = {}
    for name, options in {
        "all": dict(score_thr=0.0),
        "best": dict(score_thr=0.5),
        "plain": dict(score_thr=0.0, ltm="none"),
    }.items():
        out = predict(
            SHAPES_CONFIG,
            checkpoint,
            source,
            str(tmp_path / name),
            pictures=False,
            cfg_options=SMALL,
            **options,
        )
        file = out / "predictions.bbox.json"
        scores[name] = [entry["score"] for entry in json.loads(file.read_text())]
    assert min(scores["all"]) < 0.5 <= min(scores["best"])
    assert scores["all"] != scores["plain"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(sources=["nowhere.jpg"]), "nowhere.jpg: there is no such photo, video or folder"),
        (dict(sources=["empty"]), "empty holds no photo or video: a name must end in .jpg, "),
        (dict(batch_size=0), "--batch-size must be 1 or more, got 0"),
        (dict(score_thr=30), "--score-thr must lie in 0..1, got 30"),
        (dict(device="cuda:99"), "--device cuda:99 cannot be used here"),
        (dict(out_dir="photo.png"), "--out-dir photo.png is a file: name a folder"),
        (dict(checkpoint="gone.pth"), "gone.pth does not exist"),
        (dict(config=SEGMENTOR), "parameters of EncoderDecoder, which would be untrained"),
    ],
)
def test_mistakes_end_in_one_line(
    changes: dict,
    expected: str,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    Image.new("RGB", (64, 48)).save("photo.png")
    given = dict(config=SHAPES_CONFIG, checkpoint=weights(SHAPES_CONFIG), sources=["photo.png"])
    assert expected in line_of(capsys, lambda: predict(**{**given, **changes}))

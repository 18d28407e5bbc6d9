"""From config and image file to pictures: both tasks, every kind of image, bad input."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

import ltm_mm
from ltm_mm.engine import load_config
from ltm_mm.engine.build import plain_twin
from ltm_mm.engine.photos import find_images, pipeline_of
from ltm_mm.errors import UserError, clean_errors
from ltm_mm.visualization import MergeVisualizer, build_pair, visualize
from tests.conftest import ROOT, load_file, tool_runner

DETECTOR = str(ROOT / "configs" / "ltm_swin_maskrcnn_shapes.py")
SEGMENTOR = str(ROOT / "configs" / "ltm_efficientvit_upernet_shapes.py")
SIZES = {"test_dataloader.dataset.pipeline.1.scale": (96, 96)}


def photo(height: int = 67, width: int = 90) -> Image.Image:
    """A picture with a gradient and a bright square near its upper left corner."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    pixels[8:20, 8:24] = (250, 240, 20)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def visualizer() -> Iterator[MergeVisualizer]:
    """Draws with a tiny detector."""
    cfg = load_config(DETECTOR, {**SIZES, "model.backbone.keep": 25})
    pair = build_pair(cfg, None, False, "cpu", 0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield MergeVisualizer(pair.merged, pair.plain, pipeline_of(cfg), pair.classes, pair.caption)


@pytest.mark.parametrize(
    ("config", "keep", "blocks", "names"),
    [
        (DETECTOR, 25, None, ("0_blocks_0", "2_blocks_0", "3_blocks_1")),
        (DETECTOR, 25, [1, -1], ("0_blocks_1", "3_blocks_1")),
        (SEGMENTOR, (None, None, 36, 36), None, ("2_blocks_1", "3_blocks_1")),
    ],
    ids=["mmdet", "chosen", "mmseg"],
)
def test_end_to_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    config: str,
    keep: object,
    blocks: list[int] | None,
    names: tuple[str, ...],
) -> None:
    photo().save(tmp_path / "photo.png")
    written = visualize(
        config,
        str(tmp_path / "photo.png"),
        out_dir=str(tmp_path / "out"),
        blocks=blocks,
        cfg_options={**SIZES, "model.backbone.keep": keep},
    )
    names = ["merge_map", "shared", "predictions", *(f"merge_map_stages_{n}" for n in names)]
    assert written == [tmp_path / "out" / "photo" / f"{name}.png" for name in names]
    said = capsys.readouterr().out
    for file in written:
        assert f"  {file}\n" in said
        with Image.open(file) as picture:
            assert max(picture.size) >= 800
            assert np.asarray(picture).std() > 0


def test_merge_map_of_a_photo_follows_it(visualizer: MergeVisualizer, tmp_path: Path) -> None:
    """The drawn map, averaged over all pixels, has the photo's own colours: none is lost."""
    photo(133, 207).save(tmp_path / "photo.png")
    image, data = visualizer.read(tmp_path / "photo.png")
    scene = visualizer.scene(image, data)
    assert scene.view.image == (133, 207)
    from ltm_mm.visualization import draw_merge_map

    for block in scene.blocks:
        drawn = draw_merge_map(image, block, scene.view, 1, borders=False)
        assert drawn.shape == image.shape
        np.testing.assert_allclose(drawn.mean((0, 1)), image.mean((0, 1)), atol=0.6)


@pytest.mark.parametrize("kind", ["grey", "grey with alpha", "alpha", "palette", "16 bit"])
def test_kinds_of_images(visualizer: MergeVisualizer, tmp_path: Path, kind: str) -> None:
    picture = photo()
    expected = np.asarray(picture)
    if kind in ("grey", "grey with alpha"):
        picture = picture.convert("L" if kind == "grey" else "LA")
        expected = np.asarray(picture.convert("RGB"))
    elif kind == "alpha":
        picture.putalpha(255)
    elif kind == "palette":
        picture = picture.quantize(64)
        expected = np.asarray(picture.convert("RGB"))
    else:
        grey = np.asarray(picture.convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
        expected = grey[..., None].repeat(3, -1)
    picture.save(tmp_path / "photo.png")
    image, data = visualizer.read(tmp_path / "photo.png")
    np.testing.assert_array_equal(image, expected)
    assert len(visualizer.scene(image, data).blocks) == 3


def test_photo_turned_by_its_exif_tag(visualizer: MergeVisualizer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    photo().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image, data = visualizer.read(tmp_path / "turned.jpg")
    upright = np.asarray(photo()).swapaxes(0, 1)[:, ::-1]
    assert image.shape == upright.shape == (90, 67, 3)
    assert np.abs(image.astype(int) - upright).mean() < 6
    assert visualizer.scene(image, data).view.image == (90, 67)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"no image at all", "is damaged or no image"), (None, "is damaged")],
    ids=["empty", "text", "cut off"],
)
def test_files_that_are_no_images(
    visualizer: MergeVisualizer, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    file = tmp_path / "photo.jpg"
    if content is None:
        photo(200, 300).save(file, quality=95)
        content = file.read_bytes()[:-4000]
    file.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        visualizer.read(file)


def test_point_outside_the_image(visualizer: MergeVisualizer, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"--points 90,5 lies outside .* 0\.\.89,0\.\.66"):
        visualizer.draw(tmp_path / "photo.png", tmp_path / "out", points=[(90, 5)])


def test_an_image_with_too_few_tokens(
    visualizer: MergeVisualizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltm_mm.visualization.merge_visualizer.merge_groups_of", lambda *_: [])
    photo(7, 9).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"an image of \(7, 9\) pixels has too few tokens"):
        visualizer.scene(*visualizer.read(tmp_path / "photo.png"))


def test_folder_goes_on_after_a_bad_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo().save(tmp_path / "a.png")
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    options = {**SIZES, "model.backbone.keep": (None, None, None, (None, 9))}
    with pytest.raises(SystemExit) as ended, clean_errors():
        visualize(DETECTOR, str(tmp_path), out_dir=str(out), cfg_options=options)
    assert ended.value.code == 1
    assert sorted(folder.name for folder in out.iterdir()) == ["a.jpg", "a.png"]
    said = capsys.readouterr()
    assert f"8 pictures of 2 images in {out}" in said.out
    assert "left out: " in said.err
    assert "error: 1 of 3 images were left out" in said.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(image="no/such.jpg"), "no/such.jpg: there is no such image or folder"),
        (dict(image="{tmp}/empty"), "holds no image: a name must end in .jpg"),
        (dict(config="no/such.py"), "config no/such.py does not exist"),
        (dict(checkpoint="no/such.pth"), "no/such.pth"),
        (dict(checkpoint="{tmp}/photo.png"), "photo.png"),
        (dict(ltm="turbo"), "--ltm turbo: give none"),
        (dict(ltm="none"), "merges no tokens: give --ltm balanced"),
        (dict(cfg_options={"model.backbone.keep": None}), "merges no tokens"),
        (dict(cfg_options={"model.backbone.keep": 50}), "keep"),
        (dict(blocks=[99]), "blocks must be positions from 0"),
        (dict(config="mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"), "is ResNet (50)"),
        (dict(device="tpu9"), "--device tpu9"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: dict, expected: str
) -> None:
    photo().save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    given = dict(config=DETECTOR, image=str(tmp_path / "photo.png"), out_dir=str(tmp_path / "out"))
    given |= {
        k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v
        for k, v in arguments.items()
    }
    with pytest.raises(SystemExit) as ended, clean_errors():
        visualize(**given)
    assert ended.value.code == 1
    (line,) = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_plain_twin_has_the_same_weights_and_no_merging() -> None:
    pair = build_pair(load_config(DETECTOR, SIZES), None, False, "cpu", 0)
    merged, plain = pair.merged.state_dict(), pair.plain.state_dict()
    assert set(merged) - set(plain) == {key for key in merged if ".merge." in key}
    for key, value in plain.items():
        torch.testing.assert_close(value, merged[key], rtol=0, atol=0)


def test_plain_twin_of_a_model_that_apply_was_used_on() -> None:
    cfg = load_config(DETECTOR, SIZES)
    plain = build_pair(cfg, None, False, "cpu", 0).plain
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"ltm_mm.apply was not used"):
        plain_twin(plain)
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientvit_b0", pretrained=False, features_only=True).eval()
    before = model(image)
    twin = plain_twin(ltm_mm.apply(model, "fast"))
    for mine, expected in zip(twin(image), before, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_images_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.txt", "._a.jpeg"):  # the last one as macOS leaves it
        (tmp_path / name).touch()
    assert [file.name for file in find_images(str(tmp_path))] == ["a.jpeg", "b.PNG"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["c.py", "none.jpg"],
        ["c.py", "--points", "1,2", "3,4", "--dpi", "90", "--", "w.pth", "none.jpg"],
        ["c.py", "w.pth", "--out-dir", "out", "none.jpg"],
        ["c.py", "--blocks", "0", "-1", "--", "w.pth", "none.jpg"],
    ],
)
def test_options_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], tool: Callable
) -> None:
    monkeypatch.setattr(sys, "argv", ["visualize.py", *arguments])
    args = tool()
    assert (args.config, args.image) == ("c.py", "none.jpg")
    assert args.checkpoint == (None if len(arguments) == 2 else "w.pth")


@pytest.fixture
def tool() -> Callable:
    """``parse_args`` of the tool."""
    return load_file("tools/visualize.py").parse_args


def test_the_tool_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        tool_runner("visualize", monkeypatch)(DETECTOR, "none.jpg")
    assert ended.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: none.jpg: there is no such image or folder"

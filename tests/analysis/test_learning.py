"""``tools/learn.py``: on files, with mistakes, interrupted and gone on with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltm_mm.analysis import learning
from ltm_mm.analysis.learning import run_learning
from ltm_mm.checkpoints.learned import Learned
from ltm_mm.engine import load_config
from ltm_mm.engine.build import model_builder
from ltm_mm.errors import UserError

CONFIG = """
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[0] * 3, std=[255] * 3, size=(64, 96)),
    backbone=dict(type='SwinTransformer', embed_dims=16, depths=(2, 2), num_heads=(1, 2),
                  strides=(4, 2), out_indices=(0, 1), pretrain_img_size=64),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=1, channels=8, num_convs=1,
                     num_classes=5, norm_cfg=dict(type='BN'), align_corners=False),
    test_cfg=dict(mode='whole'))
default_scope = 'mmseg'
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64)),
    dict(type='PackSegInputs')]))
"""
OPTIONS = dict(ltm=["9"], steps=6, crop=48, rounds=0, lr=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[str, str]:
    """A config and a checkpoint."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "tiny.py").write_text(CONFIG)
    model = model_builder(load_config(folder / "tiny.py"), None)(None)
    content = dict(
        state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=list("abcde")))
    )
    torch.save(content, folder / "tiny.pth")
    return str(folder / "tiny.py"), str(folder / "tiny.pth")


def photos(folder: Path, count: int, size: tuple[int, int] = (96, 64)) -> str:
    folder.mkdir()
    for k in range(count):
        coarse = np.random.default_rng(k).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{k}.png")
    return str(folder)


@pytest.mark.parametrize(
    "train", ["all", *(pytest.param(t, marks=pytest.mark.slow) for t in ("detail", "weights"))]
)
def test_what_is_written_serves_its_plan(trained, tmp_path, capsys, train):
    config, checkpoint = trained
    out = tmp_path / "learned.pth"
    lesson = run_learning(
        config, checkpoint, photos(tmp_path / "p", 4), str(out), train=train, **OPTIONS
    )
    assert [row.name for row in lesson.rows] == ["plain", "9", "9, learned"]
    _, before, after = lesson.rows
    assert sum(after.errors) < sum(before.errors)
    said = capsys.readouterr().out
    assert lesson.table() in said
    assert f"tools/test.py {config} " in said
    assert json.loads((tmp_path / "learned.json").read_text())["rows"][2]["kind"] == "learned"
    build = model_builder(load_config(config), checkpoint if train == "detail" else str(out))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        plain = model_builder(load_config(config), checkpoint)(9).backbone(x)
        learned = build(9)
        if train == "detail":
            stages = learned.backbone.swin_stages()
            Learned.load(out).attach(stages)
        assert all((a - b).abs().max() > 0 for a, b in zip(learned.backbone(x), plain, strict=True))
    if train != "detail":
        assert torch.load(out, weights_only=True)["meta"]["dataset_meta"]["classes"] == list(
            "abcde"
        )


@pytest.mark.parametrize(
    ("count", "says"),
    [(0, "holds no image"), (1, "holds one photo: learning needs two at least")],
)
def test_too_few_photos(trained, tmp_path, count, says):
    with pytest.raises(UserError, match=says):
        run_learning(*trained, photos(tmp_path / "p", count), str(tmp_path / "o.pth"), **OPTIONS)
    assert not (tmp_path / "o.pth").exists()


def test_a_damaged_photo_is_left_out_and_small_ones_are_scaled_up(trained, tmp_path):
    folder = photos(tmp_path / "p", 4, (20, 13))
    Path(folder, "1.png").write_bytes(b"no photo")
    run_learning(*trained, folder, str(tmp_path / "o.pth"), **OPTIONS)
    assert (tmp_path / "o.pth").is_file()


def test_only_damaged_photos(trained, tmp_path):
    folder = photos(tmp_path / "p", 3)
    for file in Path(folder).iterdir():
        file.write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"damaged|none of the photos|cannot be"):
        run_learning(*trained, folder, str(tmp_path / "o.pth"), **OPTIONS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(steps=0), "--steps"),
        (dict(crop=8), "--crop must be 32 or more, got 8"),
        (dict(lr=3.0), "--lr must lie between 0 and 1, got 3.0"),
        (dict(ltm=["none"]), "--ltm none: there is nothing to learn"),
        (dict(ltm=["quick"]), "--ltm quick: give none"),
        (dict(rounds=-1), "--rounds must be 0"),
        (dict(device="cuda:9"), "--device cuda:9 cannot be used here"),
    ],
)
def test_options_are_checked_first(trained, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        run_learning(
            *trained, photos(tmp_path / "p", 2), str(tmp_path / "o.pth"), **OPTIONS | options
        )


def test_what_learned_for_merging_does_not_teach(trained, tmp_path):
    """Without merging it is not the network that was trained; learned over, it would get worse."""
    config, checkpoint = trained
    content = torch.load(checkpoint, weights_only=True)
    content["meta"]["ltm_learned"] = dict(weights=True)
    torch.save(content, tmp_path / "learned.pth")
    with pytest.raises(UserError, match="learned with merging on, and the network without"):
        run_learning(config, str(tmp_path / "learned.pth"), photos(tmp_path / "p", 2),
                     str(tmp_path / "o.pth"), **OPTIONS)  # fmt: skip


@pytest.mark.parametrize("place", [0, 1], ids=["config", "checkpoint"])
def test_what_is_read_is_not_replaced(trained, tmp_path, place):
    before = Path(trained[place]).read_bytes()
    with pytest.raises(UserError, match=r"--out .* would replace a file that is read"):
        run_learning(*trained, photos(tmp_path / "p", 2), trained[place], **OPTIONS)
    assert Path(trained[place]).read_bytes() == before


def test_a_file_is_not_named_like_its_table(trained, tmp_path):
    """Which would be written over it."""
    with pytest.raises(UserError, match=r"--out: .*o\.json is a config by its name"):
        run_learning(*trained, photos(tmp_path / "p", 2), str(tmp_path / "o.json"), **OPTIONS)


def test_another_file_to_resume_from(trained, tmp_path):
    out = str(tmp_path / "o.pth")
    torch.save({"state_dict": {}}, f"{out}.resume")
    with pytest.raises(UserError, match=r"o.pth.resume was not written by tools/learn\.py"):
        run_learning(*trained, photos(tmp_path / "p", 2), out, resume=True, **OPTIONS)


def test_no_swin_no_detail(tmp_path):
    config = tmp_path / "vit.py"
    config.write_text("model = dict(backbone=dict(type='ltm_mm.LTMEfficientViT', arch='b0'))")
    model = model_builder(load_config(config), None)(None)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="has no Swin blocks, which details are for"):
        run_learning(
            str(config), str(tmp_path / "vit.pth"), photos(tmp_path / "p", 2),
            str(tmp_path / "o.pth"), **OPTIONS | dict(train="detail", ltm=["fast"]),
        )  # fmt: skip


def test_learning_that_does_not_help_writes_nothing(trained, tmp_path):
    out = tmp_path / "o.pth"
    out.write_bytes(b"before")
    with pytest.raises(UserError, match=r"learning did not help: .* was not written"):
        run_learning(*trained, photos(tmp_path / "p", 3), str(out),
                     **OPTIONS | dict(train="weights", lr=0.9, steps=2))  # fmt: skip
    assert out.read_bytes() == b"before"


def test_a_full_disk_is_a_line(trained, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = photos(tmp_path / "p", 3)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"o.pth cannot be written .*is the disk full"):
        run_learning(*trained, folder, str(tmp_path / "o.pth"), **OPTIONS)
    assert not (tmp_path / "o.pth").exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C after so many steps."""
    show_progress = learning.show_progress

    def stop(bar: object, progress: object) -> None:
        show_progress(bar, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(learning, "show_progress", stop)


def test_an_interrupt_keeps_the_best_so_far(trained, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, 3)
    out = tmp_path / "o.pth"
    run_learning(*trained, photos(tmp_path / "p", 3), str(out), **OPTIONS)
    assert "interrupted after 3 of 6 steps: the best so far is kept" in capsys.readouterr().out
    assert out.is_file()


def test_resume_goes_on_with_the_same_options_alone(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning, "SAVE_EVERY", 2)
    folder, out = photos(tmp_path / "p", 3), str(tmp_path / "o.pth")
    with monkeypatch.context() as patch:
        # Ends after learning, before the file.
        patch.setattr(learning, "_measure_learned", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_learning(*trained, folder, out, **OPTIONS)
    assert Path(f"{out}.resume").is_file()
    with pytest.raises(UserError, match="was written with another crop"):
        run_learning(*trained, folder, out, resume=True, **OPTIONS | dict(crop=32))
    run_learning(*trained, folder, out, resume=True, **OPTIONS)
    assert Path(out).is_file()
    assert not Path(f"{out}.resume").exists()

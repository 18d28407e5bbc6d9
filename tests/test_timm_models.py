"""Our models in timm's registry, used as timm's own scripts use them."""

import runpy
import sys

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.testing import assert_close

import ltm_mm.timm_models
from ltm_mm.adapters import remove
from ltm_mm.datasets import SHAPES, draw_image
from ltm_mm.merging import record_merges

SMALL = [
    ("ltm_swin_tiny", dict(embed_dim=12, num_heads=(1, 1, 2, 2))),
    ("ltm_vit_tiny", dict(embed_dim=24, num_heads=2)),
    ("ltm_efficientvit_b0", {}),
    ("ltm_mobilevit_xxs", {}),
]


def merging_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".merge." in name)


@pytest.mark.parametrize("name", ltm_mm.timm_models.PLAIN)
def test_every_model_is_registered_and_is_the_plain_one_with_masks(name):
    assert timm.is_model(name)
    plain = ltm_mm.timm_models.PLAIN[name]
    assert timm.is_model(plain)
    if not name.endswith(("large", "base", "small", "b3", "l2", "l3")):
        with torch.device("meta"):
            merged, reference = timm.create_model(name), timm.create_model(plain)
        count = sum(p.numel() for p in reference.parameters())
        # Only an EfficientViT's masks learn by default.
        assert bool(merging_parameters(merged)) == ("efficientvit" in name)
        assert sum(p.numel() for p in merged.parameters()) == count + merging_parameters(merged)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_classifier_and_features(name, options):
    model = timm.create_model(name, num_classes=7, keep="fast", **options).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), record_merges(model) as merges:
        assert model(x).shape == (2, 7)
    assert merges
    with torch.no_grad():
        assert model.forward_features(x).shape[0] == 2
    features = timm.create_model(name, features_only=True, keep="fast", **options).eval()
    with torch.no_grad(), record_merges(features) as merges:
        maps = features(x)
    assert merges
    channel = 3 if "swin" in name else 1
    assert [m.shape[channel] for m in maps] == features.feature_info.channels()
    reset = timm.create_model(name, num_classes=0, **options)
    assert reset.num_classes == 0
    assert timm.data.resolve_model_data_config(reset)["input_size"][0] == 3


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_options_reach_the_merging(name, options):
    plain = timm.create_model(name, keep="none", **options).eval()
    other = timm.create_model(name, keep="fast", **options).eval()
    x = torch.randn(1, 3, 224, 224)
    for model, merges in ((plain, False), (other, True)):
        with torch.no_grad(), record_merges(model) as found:
            model(x)
        assert bool(found) == merges
    remove(other)
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_close(other.eval()(x), plain(x), rtol=0, atol=0)


def test_keywords_of_one_family_alone():
    windows = [
        timm.create_model("ltm_efficientvit_b0", keep="fast", **own)
        for own in ({}, dict(window_size=4))
    ]
    assert merging_parameters(windows[0]) > merging_parameters(windows[1]) > 0
    with pytest.raises(ValueError, match="window_size is for an EfficientViT"):
        timm.create_model("ltm_vit_tiny", window_size=4, **SMALL[1][1])


SCRIPT = """
import sys, timm
print(sys.argv[1:], timm.create_model("ltm_vit_tiny", depth=3, keep="fast").blocks[0].prefix)
"""


def test_timms_scripts_know_the_names(tmp_path, monkeypatch, capsys):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["ltm_mm.timm_models", str(script), "--model", "x"])
    runpy.run_path(ltm_mm.timm_models.__file__, run_name="__main__")
    assert capsys.readouterr().out == "['--model', 'x'] 1\n"
    monkeypatch.setattr(sys, "argv", ["ltm_mm.timm_models"])
    with pytest.raises(SystemExit, match="usage: python -m ltm_mm"):
        runpy.run_path(ltm_mm.timm_models.__file__, run_name="__main__")


def single_shapes(count: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops around the largest shape of built-in images, and its class."""
    images, labels = [], []
    for index in range(count):
        image, objects, classes = draw_image("train", index)
        areas = torch.bincount(torch.from_numpy(objects.astype("int64")).flatten())[1:]
        number = int(areas.argmax())
        rows, cols = (objects == number + 1).nonzero()
        top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
        crop = torch.from_numpy(image[top:bottom, left:right]).permute(2, 0, 1)[None] / 255
        images.append(torch.nn.functional.interpolate(crop, (size, size), mode="bilinear")[0])
        labels.append(classes[number])
    return torch.stack(images), torch.tensor(labels)


@pytest.mark.slow
def test_a_merging_classifier_learns_through_timms_api():
    images, labels = single_shapes(480)
    model = timm.create_model(
        "ltm_vit_tiny", num_classes=len(SHAPES), img_size=64, patch_size=8, embed_dim=64,
        depth=4, num_heads=2, keep="balanced",
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=20, warmup_epochs=2)
    train, held = slice(0, 400), slice(400, 480)
    for epoch in range(20):
        scheduler.step(epoch)
        model.train()
        for batch in torch.randperm(400).split(40):
            loss = torch.nn.functional.cross_entropy(model(images[train][batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (model.eval()(images[held]).argmax(1) == labels[held]).float().mean()
    assert right > 0.5, right  # chance: 0.17

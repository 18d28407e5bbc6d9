"""Weights of every source, through the shipped converters, give the reference's outputs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import timm.models.swin_transformer as timm_swin
import torch
import torch.nn.functional as F
from mmdet.models.backbones.swin import SwinTransformer, swin_converter
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.testing import assert_close

import ltm_mm.timm_models  # noqa: F401  ltm_swin_tiny, ...
from ltm_mm.checkpoints import load_backbone, to_backbone
from ltm_mm.checkpoints.detect import detect, unwrap
from ltm_mm.checkpoints.mit_han_lab import convert_efficientvit
from ltm_mm.checkpoints.mm import strip_prefixes
from ltm_mm.checkpoints.official import convert_swin
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

from .tiny import TINY, randomize

Weights = dict[str, Tensor]


def as_features_only(weights: Weights) -> Weights:
    """Names of timm's ``features_only`` models."""
    return {re.sub(r"^layers\.", "layers_", k): v for k, v in weights.items() if "head" not in k}


@pytest.mark.parametrize(
    ("build", "wanted"),
    [(SwinTransformer, (0, 1, 2)), (LTMSwin, (0, 1, 2)), (LTMSwin, (0, 1)), (LTMSwin, (0,))],
)
@pytest.mark.parametrize("source", ["official", "timm", "timm features_only", "OpenMMLab"])
def test_swin_outputs_are_timms(
    timm_model: nn.Module,
    official_weights: Weights,
    source: str,
    build: Callable,
    wanted: tuple[int, ...],
) -> None:
    """A backbone whose last stages no map needs takes a checkpoint of them all, too."""
    weights = {
        "official": lambda: official_weights,
        "timm": timm_model.state_dict,
        "timm features_only": lambda: as_features_only(timm_model.state_dict()),
        "OpenMMLab": lambda: swin_converter(official_weights),
    }[source]()
    plain = dict(keep=None) if build is LTMSwin else {}
    backbone = build(**TINY | {"out_indices": wanted}, **plain)
    backbone.eval()
    missing = backbone.load_state_dict(to_backbone(weights, backbone), strict=False).missing_keys
    assert all(re.search(r"^norm\d|relative_position_index", key) for key in missing)
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = timm_model.forward_intermediates(x, wanted, intermediates_only=True)
        outs = backbone(x)
    for out, reference in zip(outs, maps, strict=True):
        # Our output norms are fresh: plain normalisation over the channels.
        normed = F.layer_norm(reference.permute(0, 2, 3, 1), reference.shape[1:2])
        assert_close(out.permute(0, 2, 3, 1), normed, rtol=1e-5, atol=1e-5)


def test_official_fixture_is_what_timm_takes_for_official(
    timm_model: nn.Module, official_weights: Weights
) -> None:
    back = timm_swin.checkpoint_filter_fn({"model": official_weights}, timm_model)
    assert_close(back, dict(timm_model.state_dict()))


def test_official_conversion_is_mmdets(official_weights: Weights) -> None:
    theirs = {k.removeprefix("backbone."): v for k, v in swin_converter(official_weights).items()}
    ours = convert_swin(official_weights)
    left_out = theirs.keys() - ours.keys()
    assert all(re.search(r"^norm\.|attn_mask|position_index", key) for key in left_out)
    assert_close(ours, {key: theirs[key] for key in ours})


def test_init_cfg_of_an_official_file_gives_mmdets_backbone(
    official_weights: Weights, tmp_path: Path
) -> None:
    path = str(tmp_path / "swin.pth")
    torch.save({"model": official_weights}, path)
    init = {"init_cfg": ConfigDict(type="Pretrained", checkpoint=path), "convert_weights": True}
    theirs, ours = SwinTransformer(**TINY, **init), LTMSwin(keep=None, **TINY, **init)
    for backbone in (theirs, ours):
        backbone.init_weights()
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


def test_table_for_another_window_is_resized_as_mmdet_does(tmp_path: Path) -> None:
    saved = randomize(SwinTransformer(**TINY | {"window_size": 3}))
    path = str(tmp_path / "window3.pth")
    torch.save({f"backbone.{k}": v for k, v in saved.state_dict().items()
                if "relative_position_index" not in k}, path)  # fmt: skip
    init = {"init_cfg": ConfigDict(type="Pretrained", checkpoint=path)}
    theirs, ours = SwinTransformer(**TINY, **init), LTMSwin(keep=None, **TINY, **init)
    for backbone in (theirs, ours):
        backbone.init_weights()
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_absolute_embedding_is_resized() -> None:
    build = dict(keep=None, use_abs_pos_embed=True, **TINY)
    saved = randomize(LTMSwin(pretrain_img_size=32, **build))
    grown = LTMSwin(pretrain_img_size=(48, 64), **build)
    load_backbone(grown, saved.state_dict())
    table = saved.absolute_pos_embed.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    expected = F.interpolate(table, (12, 16), mode="bicubic").flatten(2).transpose(1, 2)
    assert_close(grown.absolute_pos_embed, expected)


@pytest.mark.parametrize("wrap", ["{}", "module.{}"])
def test_torchvisions_swin_gives_its_outputs(wrap: str) -> None:
    from torchvision.models import swin_transformer as tv

    arguments = dict(patch_size=[4, 4], embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 4])
    theirs = randomize(tv.SwinTransformer(window_size=[4, 4], num_classes=3, **arguments))
    mine = LTMSwin(keep=None, **TINY).eval()
    state = {wrap.format(key): value for key, value in theirs.state_dict().items()}
    load_backbone(mine, state)
    x, outs = torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(1)), []
    for place in (1, 3, 5):
        theirs.features[place].register_forward_hook(lambda _m, _x, y: outs.append(y))
    with torch.no_grad():
        theirs(x)
        for a, b in zip(mine(x), outs, strict=True):
            expected = F.layer_norm(b, b.shape[-1:])
            assert_close(a.permute(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-5)
    v2 = tv.SwinTransformer(window_size=[4, 4], block=tv.SwinTransformerBlockV2, **arguments)
    with pytest.raises(ValueError, match="the checkpoint holds Swin V2 weights"):
        to_backbone(v2.state_dict(), mine)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": {f"backbone.{k}": v for k, v in w.items()}, "epoch": 3},
        lambda w: {"model": {f"module.backbone.{k}": v for k, v in w.items()}},
        lambda w: {f"img_backbone.{k}": v for k, v in w.items()} | {"head.x": torch.ones(1)},
        lambda w: {"model": {"state_dict": w}, "optimizer": {}},
        lambda w: {"state_dict_ema": {f"_orig_mod.{k}": v for k, v in w.items()}},
        lambda w: {"model": {f"encoder.{k}": v for k, v in w.items()}},
        lambda w: {f"backbone.timm_model.{k}": v for k, v in w.items()},
    ],
)
@pytest.mark.parametrize("source", ["official", "OpenMMLab"])
def test_wrappers_and_prefixes_make_no_difference(
    official_weights: Weights, wrap: Callable, source: str
) -> None:
    weights = official_weights
    if source == "OpenMMLab":
        weights = strip_prefixes(swin_converter(weights))
    backbone = LTMSwin(keep=None, **TINY)
    assert_close(to_backbone(wrap(weights), backbone), to_backbone(weights, backbone))


def test_prefix_chooses_among_several_backbones(official_weights: Weights) -> None:
    both = {f"teacher.{k}": v for k, v in official_weights.items()}
    both |= {f"student.{k}": v + 1 for k, v in official_weights.items()}
    backbone = LTMSwin(keep=None, **TINY)
    chosen = to_backbone(both, backbone, prefix="teacher")
    assert_close(chosen, to_backbone(official_weights, backbone))


# Keys of mit-han-lab/efficientvit's models, and timm's names for the same tensors.
B_SERIES = {
    "backbone.input_stem.op_list.0.conv.weight": "stem.in_conv.conv.weight",
    "backbone.input_stem.op_list.1.main.depth_conv.norm.bias":
        "stem.res0.main.depth_conv.norm.bias",
    "backbone.stages.0.op_list.0.main.inverted_conv.conv.weight":
        "stages.0.blocks.0.main.inverted_conv.conv.weight",
    "backbone.stages.3.op_list.2.context_module.main.aggreg.0.1.weight":
        "stages.3.blocks.2.context_module.main.aggreg.0.1.weight",
    "backbone.stages.3.op_list.2.local_module.main.point_conv.norm.running_var":
        "stages.3.blocks.2.local_module.main.point_conv.norm.running_var",
}  # fmt: skip
L_SERIES = {
    "backbone.stages.0.op_list.0.conv.weight": "stem.in_conv.conv.weight",
    "backbone.stages.0.op_list.1.main.conv2.norm.weight": "stem.res0.main.conv2.norm.weight",
    "backbone.stages.1.op_list.0.main.spatial_conv.conv.weight":
        "stages.0.blocks.0.main.spatial_conv.conv.weight",
    "backbone.stages.4.op_list.3.context_module.main.qkv.conv.weight":
        "stages.3.blocks.3.context_module.main.qkv.conv.weight",
}  # fmt: skip


@pytest.mark.parametrize(("names", "arch"), [(B_SERIES, "b0"), (L_SERIES, "l1")])
def test_mit_han_lab_names(names: dict[str, str], arch: str) -> None:
    given = {key: torch.tensor(i) for i, key in enumerate(names)}
    head = {"head.op_list.0.conv.weight": torch.tensor(-1)}
    out = convert_efficientvit(strip_prefixes(given | head))
    assert out == {name: given[key] for key, name in names.items()}
    reference = timm.create_model(f"efficientvit_{arch}", num_classes=0)
    assert set(out) <= set(reference.state_dict())


def as_mit_han_lab(weights: Weights, large: bool) -> Weights:
    """timm's EfficientViT weights under the names of MIT Han Lab's repository."""
    stem = "stages.0" if large else "input_stem"
    patterns = (
        (r"^stem\.in_conv", lambda _: f"{stem}.op_list.0"),
        (r"^stem\.res(\d)", lambda m: f"{stem}.op_list.{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.blocks", lambda m: f"stages.{int(m[1]) + large}.op_list"),
    )
    out = {}
    for key, value in weights.items():
        for pattern, name in patterns:
            key, found = re.subn(pattern, name, key)
            if found:
                break
        out[f"backbone.{key}"] = value
    return out


@pytest.mark.parametrize(
    ("arch", "source"),
    [
        ("b0", "timm"),
        ("b0", "timm features_only"),
        ("b0", "mit-han-lab"),
        ("l1", "mit-han-lab"),  # blocks of another kind
        pytest.param("l1", "timm", marks=pytest.mark.slow),
        pytest.param("l1", "timm features_only", marks=pytest.mark.slow),
    ],
)
def test_efficientvit_outputs_are_timms(arch: str, source: str) -> None:
    whole = timm.create_model(f"efficientvit_{arch}")
    features = timm.create_model(f"efficientvit_{arch}", features_only=True).eval()
    body = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.")}
    flat = dict(zip(features.state_dict(), body.values(), strict=True))
    features.load_state_dict(flat)
    weights = {
        "timm": whole.state_dict(),
        "timm features_only": flat,
        "mit-han-lab": {"state_dict": as_mit_han_lab(body, arch == "l1")},
    }[source]
    backbone = LTMEfficientViT(arch, keep=None).eval()
    backbone.load_state_dict(to_backbone(weights, backbone), strict=True)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_close(backbone(x), tuple(features(x)), rtol=1e-5, atol=1e-5)


def test_efficientvit_loads_merged_or_shortened() -> None:
    weights = timm.create_model("efficientvit_b0").state_dict()
    merged = LTMEfficientViT("b0", keep=(None, None, 16, 16))
    report = load_backbone(merged, weights)
    assert all(".merge." in key for key in report.fresh)
    assert len(report.fresh) == sum(".merge." in key for key in merged.state_dict())
    short = LTMEfficientViT("b0", keep=None, out_indices=(1, 2))
    assert load_backbone(short, weights).fresh == []
    assert_close(short.stages[0].state_dict(), merged.stages[0].state_dict())


VIT = dict(embed_dim=24, num_heads=2, depth=4)


def vit(pool: str = "token", **options: object) -> nn.Module:
    options = {**VIT, "global_pool": pool, **options}
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **options)
    return randomize(model)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_vit_outputs_are_timms(pool: str) -> None:
    reference = vit(pool)
    names = dict(embed_dims=24, num_heads=2, num_layers=4)
    backbone = LTMViT("tiny", None, final_norm=True, out_indices=(1, 3), **names).eval()
    report = load_backbone(backbone, {"model": reference.state_dict()})
    assert report.fresh == []
    x = torch.rand(1, 3, 96, 128)
    last = reference.fc_norm if pool == "avg" else reference.norm
    with torch.no_grad():
        maps = reference.forward_intermediates(x, (1, 3), intermediates_only=True)
        for out, plain in zip(backbone(x), maps, strict=True):
            normed = last(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert_close(out, normed, rtol=1e-5, atol=1e-5)


def test_vit_loads_merged_shortened_and_for_another_image_size() -> None:
    weights = vit().state_dict()
    names = dict(embed_dims=24, num_heads=2, num_layers=4)
    merged = LTMViT("tiny", "balanced", simple_pyramid=True, **names)
    report = load_backbone(merged, weights)
    assert all(key.startswith("pyramid.") for key in report.fresh)
    short = LTMViT("tiny", None, out_indices=(1,), img_size=128, **names)
    assert load_backbone(short, weights).fresh == []
    same = timm.create_model("vit_tiny_patch16_224", img_size=224, **VIT)
    same.load_state_dict(weights)
    same.set_input_size((128, 128))
    assert_close(short.pos_embed, same.pos_embed)


@pytest.mark.parametrize("source", ["timm", "timm features_only"])
def test_mobilevit_outputs_are_timms(source: str) -> None:
    whole = randomize(timm.create_model("mobilevit_xxs"))
    features = timm.create_model("mobilevit_xxs", features_only=True).eval()
    body = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.")}
    flat = dict(zip(features.state_dict(), body.values(), strict=True))
    features.load_state_dict(flat)
    backbone = LTMMobileViT("xxs", keep=None, out_indices=(0, 1, 2, 3, 4)).eval()
    given = whole.state_dict() if source == "timm" else flat
    assert load_backbone(backbone, given).fresh == []
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(backbone(x), features(x), strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
    short = LTMMobileViT("xxs", keep="balanced", out_indices=(2, 3))
    assert load_backbone(short, given).fresh == []


@pytest.mark.parametrize("family", ["swin", "efficientvit", "mobilevit", "vit"])
def test_a_classifier_trained_merging_in_timm_loads_masks_and_all(family: str) -> None:
    size = {"vit": dict(num_layers=4, embed_dims=24, num_heads=2), "swin": TIMM_TINY[1]}
    arch = {"swin": None, "efficientvit": "b0", "mobilevit": "xxs", "vit": "tiny"}[family]
    classes = dict(swin=LTMSwin, efficientvit=LTMEfficientViT, mobilevit=LTMMobileViT, vit=LTMViT)
    name = f"ltm_{family}_{arch or 'tiny'}"
    options = {"vit": VIT, "swin": TIMM_TINY[0]}.get(family, {})
    weights = randomize(timm.create_model(name, keep="fast", **options)).state_dict()
    backbone = classes[family](arch=arch, keep="fast", **size.get(family, {}))
    report = load_backbone(backbone, weights)
    assert all(re.search(r"^norm\d", key) for key in report.fresh)
    assert not [key for key in report.unused if not key.startswith(("head.", "norm."))]
    learned = [key for key in weights if ".merge." in key]
    loaded = [key for key in backbone.state_dict() if ".merge." in key]
    assert len(loaded) == len(learned)
    assert bool(learned) == (family == "efficientvit")  # a Swin's matching has no parameters
    for own, theirs in zip(loaded, learned, strict=True):
        assert_close(backbone.state_dict()[own], weights[theirs], rtol=0, atol=0)


# The same small Swin for timm and here.
TIMM_TINY = (
    dict(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
    dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
)


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("layers.0.downsample.reduction.weight", "official Swin"),
        ("layers.2.blocks.0.attn.qkv.weight", "timm Swin"),
        ("layers_0.blocks.0.attn.qkv.weight", "timm Swin"),
        ("stages.0.blocks.0.attn.w_msa.qkv.weight", "OpenMMLab Swin"),
        ("stem_in_conv.conv.weight", "timm EfficientViT"),
        ("input_stem.op_list.0.conv.weight", "mit-han-lab EfficientViT"),
        ("stages.2.1.transformer.0.attn.qkv.weight", "timm MobileViT"),
        ("stages_2.1.transformer.0.attn.qkv.weight", "timm MobileViT"),
        ("blocks.3.attn.qkv.weight", "timm ViT"),
        ("encoder.layers.0.blocks.0.attention.self.query.weight", "Hugging Face Swin"),
        ("features.1.0.attn.qkv.weight", "torchvision Swin"),
        ("layer1.0.conv1.weight", None),
    ],
)
def test_detect(key: str, source: str | None) -> None:
    detected = detect([key])
    assert (detected and detected.name) == source


def test_unwrap_keeps_the_versions_of_modules(timm_model: nn.Module) -> None:
    assert unwrap({"state_dict": timm_model.state_dict()})._metadata["layers"] == {"version": 1}

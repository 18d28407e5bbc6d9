"""What a block keeps follows from the plan and the geometry of the pass, and from nothing else."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.apply import ADAPTERS
from ltm_mm.merging import merging_blocks, record_merges
from tests.models.contract import settled

from .sources import build, mm_swin, outputs, timm_swin, torchvision_swin

VIT = dict(embed_dim=24, num_heads=2, depth=4, num_classes=5)


def vit(**options: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **VIT | options)


def one_stage() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [2], [2], window_size=[7, 7], num_classes=5)


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "mmdet": lambda: mm_swin("mmdet"),
    "timm": timm_swin,
    "torchvision": torchvision_swin,
    "one stage": one_stage,
    "vit": vit,
    "efficientvit": lambda: timm.create_model("efficientvit_b0", num_classes=5),
    "mobilevit": lambda: timm.create_model("mobilevit_xxs", num_classes=5),
    "mobilevit features": lambda: timm.create_model("mobilevit_xxs", features_only=True),
}


def kept(model: nn.Module) -> dict[str, int]:
    blocks = merging_blocks(model)
    return {name: getattr(block.merge, "mask", block.merge).keep for name, block in blocks}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("keep", ["balanced", 0.4])
@pytest.mark.parametrize(
    "kind", ["nested", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("list", "names"))]
)
def test_every_backbone_of_a_model_gets_the_plan(name, keep, kind):
    first, second = BACKBONES[name](), BACKBONES[name]()
    parts = {
        "list": lambda: nn.ModuleList([first, second]),
        "names": lambda: nn.ModuleDict({"student": first, "teacher": second}),
        "nested": lambda: nn.ModuleDict({"a": nn.ModuleList([first]), "b2": nn.Sequential(second)}),
    }[kind]()
    alone = kept(ltm_mm.apply(copy.deepcopy(first), keep=keep))
    ltm_mm.apply(parts, keep=keep)
    assert alone or (name, keep) == ("one stage", "balanced")
    assert kept(first) == kept(second) == alone
    assert not any(True for _ in merging_blocks(ltm_mm.remove(parts)))


def test_backbones_of_several_families():
    model = nn.ModuleDict({"swin": one_stage(), "vit": vit(), "other": nn.Conv2d(3, 3, 1)})
    ltm_mm.apply(model, keep="balanced")
    assert kept(model["swin"]) == kept(ltm_mm.apply(one_stage(), keep="balanced"))
    assert kept(model["vit"]) == kept(ltm_mm.apply(vit(), keep="balanced"))
    ltm_mm.remove(model)
    with pytest.raises(ValueError, match="window_size is for an EfficientViT; this is a swin"):
        ltm_mm.apply(model, keep=0.5, window_size=8)


@pytest.mark.parametrize("name", BACKBONES)
def test_apply_does_all_or_nothing(name, monkeypatch):
    model = nn.ModuleList([BACKBONES[name](), BACKBONES[name]()])

    def inventory() -> list:
        names = [(n, type(m), set(vars(m)), list(m._modules)) for n, m in model.named_modules()]
        return [*names, list(model.state_dict())]

    before, calls = inventory(), []
    for family in ADAPTERS:
        wrap_stage = family.wrap_stage

        def failing(*args: object, wrap_stage: Callable = wrap_stage) -> None:
            wrap_stage(*args)
            calls.append(args)
            if len(calls) == (2 if name in ("vit", "one stage") else 3):
                raise KeyboardInterrupt

        monkeypatch.setattr(family, "wrap_stage", staticmethod(failing))
    with pytest.raises(KeyboardInterrupt):
        ltm_mm.apply(model, keep=0.4)
    assert inventory() == before
    with pytest.raises(ValueError, match="one entry for each of the"):
        ltm_mm.apply(model, keep=(0.5,) * 9)
    assert inventory() == before


def sizes_kept(model: nn.Module, side: int) -> list[int]:
    """Tokens kept per window, merge by merge, of a pass."""
    with torch.no_grad(), record_merges(model) as merges:
        model(torch.randn(1, 3, side, side))
    return [merge.mask.count for _, merge in merges]


def test_earlier_sizes_leave_no_trace():
    """timm's Swin takes smaller windows for smaller images, when it is told the size."""
    model = settled(timm_swin(always_partition=False, strict_img_size=True)).eval()
    twin, first = copy.deepcopy(model), None
    ltm_mm.apply(model, keep=5)
    for side in (224, 112, 64, 224, 448, 224):
        for one in (model, twin):
            one.set_input_size((side, side), window_size=7)
        counts = sizes_kept(model, side)
        assert all(0 < count < 49 for count in counts)
        if side == 224:
            first = first or counts
            assert counts == first
            # timm has resized its position biases meanwhile, of both models alike.
            x, own = torch.randn(1, 3, side, side), copy.deepcopy(twin)
            with torch.no_grad():
                expected = ltm_mm.apply(own, keep=5)(x)
                assert_close(model(x), expected, rtol=0, atol=0)


def test_where_no_number_fits_nothing_is_merged():
    """Shifted windows of 2 x 2 tokens: each of the four is a region of its own."""
    model = settled(timm_swin(img_size=64, window_size=2)).eval()
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    ltm_mm.apply(model, keep=((None, 3), None, None, None))
    assert model.layers[0].blocks[1].shift_size == (1, 1)
    assert sizes_kept(model, 64) == []
    with torch.no_grad():
        assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    ltm_mm.apply(ltm_mm.remove(model), keep=((3, 3), None, None, None))
    assert sizes_kept(model, 64) == [3]


@pytest.mark.parametrize("name", ["mmdet", "timm", "torchvision v2", "official detector"])
def test_put_on_again_and_loaded_it_is_the_same(name):
    model = ltm_mm.apply(build(name), keep=0.3)
    for block_name, block in merging_blocks(model):
        for parameter in block.merge.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
        assert block_name
    maps, state = outputs(model), copy.deepcopy(model.state_dict())
    ltm_mm.apply(ltm_mm.remove(model), keep=0.3).load_state_dict(state)
    assert_close(outputs(model), maps, rtol=0, atol=0)
    other = ltm_mm.apply(build(name), keep=0.3)
    other.load_state_dict(state)
    assert_close(outputs(other), maps, rtol=0, atol=0)


@pytest.mark.parametrize("keep", ["numpy", "none"])
def test_numbers_of_numpy_and_the_tools_word_for_nothing(keep):
    import numpy as np

    if keep == "none":
        assert not kept(ltm_mm.apply(one_stage(), keep="none"))
        return
    expected = kept(ltm_mm.apply(one_stage(), keep=9))
    for same in (np.int64(9), [np.int32(9)], np.array([9]), ((np.int64(9), np.float64(9 / 49)),)):
        assert kept(ltm_mm.apply(one_stage(), keep=same)) == expected
    with pytest.raises(ValueError, match="got True"):
        ltm_mm.apply(one_stage(), keep=np.bool_(True))

"""What timm's ViT offers beside its forward pass, on a model that merges."""

import copy
import warnings
from itertools import product

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.apply import convert_stages
from ltm_mm.merging import MergeScope
from tests.models.contract import settled

from .sources import build as swin_of

OPTIONS = dict(embed_dim=24, num_heads=2, depth=4, num_classes=5)
KINDS = {
    "class token": {},
    "registers": dict(reg_tokens=2),
    "patches alone": dict(class_token=False, global_pool="avg"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, side: int = 224) -> nn.Module:
    torch.manual_seed(0)
    options = {**OPTIONS, **KINDS[kind], "img_size": side}
    return settled(timm.create_model("vit_tiny_patch16_224", **options)).eval()


def shape_of(output: object) -> object:
    """Types and shapes, however nested."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: shape_of(value) for key, value in output.items()}
    assert isinstance(output, list | tuple)
    return type(output), [shape_of(value) for value in output]


@kinds
def test_intermediates_are_timms(kind):
    plain = build(kind, 96)
    ours, merged = copy.deepcopy(plain), ltm_mm.apply(copy.deepcopy(plain), keep=0.4)
    convert_stages(ours, None, everywhere=True)
    x = torch.randn(2, 3, 96, 96)
    switches = ("return_prefix_tokens", "norm", "stop_early", "intermediates_only", "output_dict")
    with torch.no_grad():
        for values in product((False, True), repeat=len(switches)):
            options = dict(zip(switches, values, strict=True))
            for indices, form in ((None, "NCHW"), ((0, 2), "NLC"), (2, "NCHW"), ([1], "NLC")):
                arguments = dict(indices=indices, output_fmt=form, **options)
                expected = plain.forward_intermediates(x, **arguments)
                assert_close(
                    ours.forward_intermediates(x, **arguments), expected, rtol=1e-5, atol=1e-5
                )
                assert shape_of(merged.forward_intermediates(x, **arguments)) == shape_of(expected)
        found = merged.forward_intermediates(x)[1][-1]
        assert (found - plain.forward_intermediates(x)[1][-1]).abs().max() > 1e-4


def test_what_cannot_be_had_is_refused_with_its_reason():
    model, x = ltm_mm.apply(build("class token"), keep=0.4), torch.randn(1, 3, 224, 224)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    for options in (dict(is_causal=True), dict(attn_mask=torch.zeros(197, 197))):
        for run in (model.forward_features, model.forward_intermediates):
            with pytest.raises(ValueError, match="takes no attention mask"):
                run(x, **options)


@kinds
def test_blocks_run_by_themselves(kind):
    """All of them, or some from the first one on; single ones do not, for want of the others."""
    model = ltm_mm.apply(build(kind), keep=((150, 100, 100, 60),))
    prefix, x = model.num_prefix_tokens, torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = model.forward_intermediates(
            x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for count in (2, 4):
            tokens_out = model.blocks[:count](tokens)
            expected = maps[count - 1]
            expected = torch.cat(expected[::-1], 1) if prefix else expected
            assert_close(tokens_out, expected, rtol=0, atol=0)
        assert_close(model.blocks(tokens), tokens_out, rtol=0, atol=0)
    with pytest.raises(ValueError, match="a part of a merging ViT's blocks must begin with"):
        model.blocks[2:](tokens)
    with pytest.raises(ValueError, match="runs within its model's forward pass alone"):
        model.blocks[1](tokens)


@pytest.mark.parametrize("name", ["timm", "torchvision", "vit", "efficientvit_b0", "mobilevit_xxs"])
def test_symbolic_tracing_gets_one_clear_line(name):
    from torchvision.models.feature_extraction import create_feature_extractor

    if name == "vit":
        model = build("class token")
    else:
        model = timm.create_model(name) if "vit" in name else swin_of(name)
    ltm_mm.apply(model.eval(), keep=0.4)
    node = {"torchvision": "features.1", "timm": "layers.1"}.get(name, "head")
    for trace in (torch.fx.symbolic_trace, lambda m: create_feature_extractor(m, [node])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="fx cannot trace inside blocks") as error:
                trace(model)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "node"), [("torchvision", "features.3"), ("timm", "layers.1")])
def test_features_of_a_swin_whose_blocks_are_kept_whole(name, node):
    from torchvision.models.feature_extraction import create_feature_extractor

    model, x, seen = ltm_mm.apply(swin_of(name), keep=0.4), torch.randn(1, 3, 224, 224), []
    hook = model.get_submodule(node).register_forward_hook(lambda _m, _x, out: seen.append(out))
    with torch.no_grad():
        model(x)
        hook.remove()
        extractor = create_feature_extractor(
            model, [node], tracer_kwargs=dict(leaf_modules=[MergeScope]), suppress_diff_warning=True
        )
        assert_close(extractor(x)[node], seen[0], rtol=0, atol=0)

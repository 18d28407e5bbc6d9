"""Instruments inside merged blocks: hooks see all tokens, in the shapes of the plain block."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.merging import merging_blocks
from ltm_mm.models import LTMSwin
from tests.models.contract import same_groups, settled

from .sources import EVEN, ODD, ONE_SIZE, TINY, build, outputs, sources

PAIRS = ("softmax", "attn_drop")  # numbers for pairs of tokens: groups have none of them


def shapes_of(model: nn.Module, size: tuple[int, int]) -> dict[str, list]:
    """Shapes that every module gets first and gives, call by call."""
    seen: dict[str, list] = {}
    handles = []

    def note(path: str, args: tuple, out: object) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            seen.setdefault(path, []).append((tuple(args[0].shape), tuple(out.shape)))

    for path, module in model.named_modules():
        hook = module.register_forward_hook(lambda _, a, o, path=path: note(path, a, o))
        handles.append(hook)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs(model, size)
    finally:
        for handle in handles:
            handle.remove()
    return {p: s for p, s in seen.items() if p.rpartition(".")[2] not in PAIRS}


@sources
def test_shapes_are_those_of_the_plain_model(name):
    model = build(name)
    size = EVEN if name in ONE_SIZE else ODD
    plain = shapes_of(model, size)
    ltm_mm.apply(model, keep=0.4)
    merged = shapes_of(model, size)
    merged = {path: seen for path, seen in merged.items() if ".merge" not in path}
    assert len(plain) > 30
    # torchvision's attention and Swin V2's call no linear layer, they read its weights.
    missing = {path for path in plain.keys() - merged.keys() if "cpb_mlp" not in path}
    assert not missing, missing
    for path in plain:
        assert merged.get(path, plain[path]) == plain[path], path


@sources
def test_hooks_that_only_look_change_nothing(name):
    model = ltm_mm.apply(build(name), keep=0.4)
    size = EVEN if name in ONE_SIZE else ODD
    with same_groups() as again, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = outputs(model, size)
        again()
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
        assert_close(outputs(model, size), expected, rtol=1e-4, atol=1e-5)
    for module in model.modules():
        assert "forward" not in vars(module)
        assert len(module._forward_hooks) == 1
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("timm", "layers.3.blocks.1.norm1", (2, 7, 7, 128)),
        pytest.param("timm", "layers.3.blocks.1.norm2", (2, 49, 128), marks=pytest.mark.slow),
        ("torchvision", "features.7.1.norm1", (2, 7, 7, 128)),
        pytest.param("mmdet", "stages.3.blocks.1.norm1", (2, 49, 128), marks=pytest.mark.slow),
        ("mmdet", "stages.3.blocks.1.attn.w_msa.qkv", (2, 49, 384)),
    ],
)
def test_grad_cam_as_tutorials_place_it(name, path, shape):
    """What a layer gives, and the gradient of a class by it."""
    model, kept, shift = ltm_mm.apply(build(name).double(), keep=0.4), {}, 0.0

    def hook(_: nn.Module, args: tuple, out: Tensor) -> Tensor:
        out.register_hook(lambda grad: kept.update(grad=grad))
        kept.setdefault("out", out.detach())
        return out + shift * kept["out"]

    model.get_submodule(path).register_forward_hook(hook)
    x = torch.randn(2, 3, *EVEN).double()

    def score() -> Tensor:
        out = model(x)
        return (out if isinstance(out, Tensor) else out[-1]).flatten(1)[:, 1].sum()

    score().backward()
    assert kept["out"].shape == kept["grad"].shape == shape
    slope, scores = (kept["grad"] * kept["out"]).sum(), []
    for shift in (-1e-6, 1e-6):  # noqa: B007 (the hook reads it)
        scores.append(score().detach())
    assert_close((scores[1] - scores[0]) / 2e-6, slope, rtol=1e-4, atol=1e-6)


def test_what_a_hook_returns_goes_on():
    model = build("timm")
    ltm_mm.apply(model, keep=0.4)
    for _, block in merging_blocks(model):
        block.mlp.register_forward_hook(lambda _m, _a, out: 0 * out)
        block.norm1.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    found = outputs(model)
    for _, block in merging_blocks(model):
        block.mlp._forward_hooks.clear()
        block.norm1._forward_pre_hooks.clear()
        nn.init.zeros_(block.mlp.fc2.weight)
        nn.init.zeros_(block.mlp.fc2.bias)
    assert_close(outputs(model), found, rtol=1e-4, atol=1e-5)  # a norm removes what is added


@pytest.mark.parametrize("kind", ["pairs", "backward"])
def test_where_that_cannot_be_a_warning_names_the_block(kind):
    model = ltm_mm.apply(build("timm"), keep=0.4)
    attention = model.layers[3].blocks[1].attn
    if kind == "backward":
        attention.proj.register_full_backward_hook(lambda *_: None)
    else:
        attention.softmax.register_forward_hook(lambda *_: None)
    path = {"pairs": "attn.softmax"}.get(kind, "attn.proj")
    with pytest.warns(UserWarning, match=f"a hook on {path} in a SwinTransformerBlock") as seen:
        outputs(model, grad=True)
    assert len({str(warning.message) for warning in seen}) == 1
    assert "hook the block itself" in str(seen[0].message)


def test_our_own_backbone_is_observed_alike():
    model = settled(LTMSwin(**TINY, keep=None)).eval()
    plain = shapes_of(model, ODD)
    merging = settled(LTMSwin(**TINY, keep=0.4)).eval()
    merged = shapes_of(merging, ODD)
    assert {p: s for p, s in merged.items() if ".merge" not in p} == plain

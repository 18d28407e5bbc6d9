"""What a user may do between apply and remove, each by its library's own means."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.families import SwinAdapter, adapter_of
from ltm_mm.checkpoints import load_backbone
from ltm_mm.kernels import use_kernels
from ltm_mm.layers.cpu_attention_mlp import FastTimmMlp
from ltm_mm.models import LTMSwin
from tests.models.contract import same_groups, settled
from tests.quantised import dequantise, quantise

from .sources import EVEN, ODD, TINY, build, mm_swin, outputs, sources, timm_swin

VIT = dict(embed_dim=24, num_heads=2, depth=4)


def saved(model: nn.Module) -> int:
    """Values that a forward pass keeps for the backward pass."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs(model, grad=True)
    return total


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(out.square().mean() for out in outputs(model, grad=True)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def set_timm(model, on):
    model.set_grad_checkpointing(on)


def set_mm(model, on):
    for module in model.modules():
        if hasattr(module, "with_cp"):
            module.with_cp = on


def set_official(model, on):
    for layer in model.layers:
        layer.use_checkpoint = on


CHECKPOINTING = {
    "timm": set_timm,
    "timm v2": set_timm,
    "mmdet": set_mm,
    "official detector": set_official,
}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("timm", "before"),
        *((name, "after") for name in CHECKPOINTING),
        *(
            pytest.param(name, "before", marks=pytest.mark.slow)
            for name in ("timm v2", "mmdet", "official detector")
        ),
    ],
)
def test_checkpointing_by_the_librarys_own_switch(name, order):
    model = build(name)
    if order == "before":
        CHECKPOINTING[name](model, True)
    ltm_mm.apply(model, keep=0.4)
    if order == "after":
        CHECKPOINTING[name](model, True)
    little, grads = saved(model), gradients(model)
    CHECKPOINTING[name](model, False)
    assert little < saved(model) * 0.5
    assert_close(grads, gradients(model), rtol=1e-4, atol=1e-6)


class Lora(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def add_lora(model: nn.Module) -> int:
    torch.manual_seed(5)
    linears = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if name in ("qkv", "proj", "fc1") and isinstance(child, nn.Linear)
    ]
    for module, name in linears:
        setattr(module, name, Lora(getattr(module, name)))
    return len(linears)


@pytest.mark.parametrize("name", ["mmdet", "timm", "official detector"])
def test_lora_before_and_after(name):
    before, after = build(name), build(name)
    count = add_lora(before)
    plain = outputs(before)
    ltm_mm.apply(before, keep=0.4)
    ltm_mm.apply(after, keep=0.4)
    assert add_lora(after) == count > 0
    assert_close(outputs(after), outputs(before), rtol=0, atol=0)
    gradients(after)
    assert all(m.up.weight.grad.abs().max() > 0 for m in after.modules() if isinstance(m, Lora))
    assert_close(outputs(ltm_mm.remove(after)), plain, rtol=0, atol=0)
    assert sum(isinstance(m, Lora) for m in after.modules()) == count


@pytest.mark.parametrize("order", ["before", "after"])
@sources
def test_quantised_layers_before_and_after(name, order):
    model = build(name)
    if order == "before":
        assert quantise(model) > 0
        with torch.no_grad():
            outputs(model)
    ltm_mm.apply(model, keep=0.4)
    if order == "after":
        quantise(model)
    same_as_dequantised(model)


def same_as_dequantised(model: nn.Module) -> None:
    with same_groups() as again:
        found = outputs(model)
        again()
        dequantise(model)
        with use_kernels(False):
            assert_close(found, outputs(model), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["efficientvit_b0", "vit_tiny_patch16_224"])
def test_quantised_layers_of_other_families(name):
    options = VIT if "vit_tiny" in name else {}
    model = ltm_mm.apply(settled(timm.create_model(name, **options)), keep=0.5).eval()
    quantise(model)
    same_as_dequantised(model)


def test_another_input_size_and_with_it_another_window():
    """timm's windows grow with the image; the share of tokens that are kept stays."""
    model = timm_swin(always_partition=False, strict_img_size=True)
    twin = copy.deepcopy(model)
    ltm_mm.apply(model, keep=(None, None, 25, None))
    for one in (model, twin):
        one.eval().set_input_size((256, 256))
    assert outputs(model, (256, 256))[0].shape == (2, 5)
    merge = model.layers[2].blocks[1].merge
    assert model.layers[2].blocks[1].window_size == (8, 8)
    assert merge.for_windows(8, 4).keep == round(64 * 25 / 49)
    ltm_mm.apply(ltm_mm.remove(model), keep=(None, None, 33, None))
    expected = outputs(model, (256, 256))
    ltm_mm.apply(twin, keep=(None, None, 33, None))
    assert_close(outputs(twin, (256, 256)), expected, rtol=0, atol=0)
    model.set_input_size((256, 512))
    with pytest.raises(ValueError, match="only square windows can be merged"):
        outputs(model, (256, 512))


def test_windows_that_begin_to_shift():
    """Where the image was as small as a window, no shift was: regions must not mix later on."""
    model = build("timm")
    model.set_input_size((224, 224), always_partition=False)
    ltm_mm.apply(model, keep=9)
    assert model.layers[3].blocks[1].merge.shift == 0
    model.set_input_size((448, 448), window_size=7)
    found = outputs(model, (448, 448))
    ltm_mm.apply(ltm_mm.remove(model), keep=9)
    assert model.layers[3].blocks[1].merge.shift == 3
    assert_close(outputs(model, (448, 448)), found, rtol=0, atol=0)


def test_a_pruned_vit():
    model, twin = (timm.create_model("vit_tiny_patch16_224", **VIT).eval() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    ltm_mm.apply(model, keep=((150, 100, 50, 50),))
    twin.prune_intermediate_layers([1])
    ltm_mm.apply(twin, keep=((150, 100),))
    expected = outputs(twin)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.blocks) == 2
    assert_close(outputs(model), expected, rtol=0, atol=0)
    ltm_mm.remove(model)
    assert_close(outputs(model), outputs(ltm_mm.remove(twin)), rtol=0, atol=0)


def test_hooks_and_lora_in_a_vit():
    model, calls = timm.create_model("vit_tiny_patch16_224", **VIT).eval(), []
    add_lora(model)
    plain = outputs(model)
    ltm_mm.apply(model, keep=0.5)
    merged = outputs(model)
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, _x, y, path=path: calls.append((path, y)))
    assert_close(outputs(model), merged, rtol=1e-5, atol=1e-5)
    seen = dict(calls)
    assert {f"blocks.{k}.{part}" for k in range(4) for part in ("attn.qkv", "mlp", "mlp.act")} < {
        *seen
    }
    assert isinstance(seen["blocks.1"], torch.Tensor)
    assert isinstance(model.blocks[0].mlp, FastTimmMlp)
    assert_close(outputs(ltm_mm.remove(model)), plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="runs within its model's forward pass alone"):
        ltm_mm.apply(model, keep=0.5).blocks[0](torch.randn(1, 197, 24))


@pytest.mark.parametrize("keep", ["fast", (None, None, (None, 36, 25, 9), 16)])
@pytest.mark.parametrize("size", [EVEN, ODD])
def test_merged_mm_swin_is_the_backbone_of_the_same_plan(keep, size):
    model = build("mmdet")
    mine = LTMSwin(**TINY, keep=keep)
    mine.load_state_dict(model.state_dict())
    mine.train(False)
    ltm_mm.apply(model, keep=keep)
    assert_close(outputs(model, size), outputs(mine, size), rtol=1e-5, atol=1e-5)


def test_mmpretrain_keeps_its_rules_for_small_maps():
    from mmpretrain.models import SwinTransformer

    arch = dict(embed_dims=16, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8])
    model = SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3))
    model.train(False)
    before = outputs(model)
    from ltm_mm.adapters.apply import convert_stages

    convert_stages(model, None, everywhere=True)
    assert_close(outputs(model), before, rtol=1e-5, atol=1e-5)  # 7 x 7 tokens: no shift
    with pytest.raises(ValueError, match="build the model with pad_small_map=True"):
        outputs(model, (192, 192))


def test_a_swin_of_an_optimiser_learns_on():
    model = mm_swin("mmdet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.stages[2].blocks[1].attn.w_msa.qkv.weight
    before = weight.detach().clone()
    ltm_mm.apply(model, keep=0.4)
    gradients(model)
    optimizer.step()
    ltm_mm.remove(model)
    assert model.stages[2].blocks[1].attn.w_msa.qkv.weight is weight
    assert (weight - before).abs().max() > 0


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("mmdet", "timm", "torchvision v2", "official detector")
]


@pytest.mark.parametrize("name", ["one stage", *SLOW])
def test_compiled_in_one_graph(name):
    one = dict(embed_dim=8, depths=(2,), num_heads=(1,))
    model = settled(timm_swin(**one)).eval() if name == "one stage" else build(name)
    expected = outputs(ltm_mm.apply(model, keep=0.4))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(outputs(compiled), expected, rtol=1e-5, atol=1e-5)


def test_two_steps_of_distributed_training(tmp_path):
    """Every parameter takes part: one that does not would stop the second step."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(ltm_mm.apply(build("timm"), keep=0.4))
        for _ in range(2):
            model(torch.randn(1, 3, *EVEN)).sum().backward()
    finally:
        distributed.destroy_process_group()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_a_detector_of_torchvision():
    from torchvision.models._utils import IntermediateLayerGetter

    from .sources import torchvision_swin

    body = ltm_mm.apply(torchvision_swin(), keep=0.4).features.eval()
    getter = IntermediateLayerGetter(body, {"1": "0", "3": "1"})
    maps = getter(torch.randn(1, 3, 96, 128))
    assert [tuple(m.shape) for m in maps.values()] == [(1, 24, 32, 16), (1, 12, 16, 32)]
    assert sum(type(m).__name__ == "Match" for m in getter.modules()) == 4


@pytest.mark.parametrize("name", ["mmseg", "mmpretrain", "timm", "torchvision"])
def test_merged_as_ltm_swin_with_the_same_weights(name):
    """At a size that no stage has to pad, and where every stage has windows to shift."""
    model = build(name)
    mine = LTMSwin(**TINY, keep=0.4)
    load_backbone(mine, model.state_dict())
    mine.norm0 = mine.norm1 = mine.norm2 = mine.norm3 = nn.Identity()
    ltm_mm.apply(model, keep=0.4)
    maps = []

    def catch(block, args, out):
        maps.append(adapter_of(block).as_map(block, args, out))

    for stage in SwinAdapter.backbones(model)[0]:
        stage[-1].register_forward_hook(catch)
    outputs(model, (448, 448))
    mine.eval()
    assert_close(maps, outputs(mine, (448, 448)), rtol=1e-4, atol=1e-4)


EMPTY = {
    "torchvision": lambda: build("torchvision"),
    "torchvision v2": lambda: build("torchvision v2"),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=5).eval(),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_of_no_image(name):
    """Where the plain model takes it."""
    model = EMPTY[name]()
    x = torch.zeros(0, 3, 224, 224)
    expected = model(x)
    ltm_mm.apply(model)
    assert_close(model(x), expected)
    model(x).sum().backward()

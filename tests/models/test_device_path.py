"""What a GPU runs, without one: no synchronisation and no shape that depends on data.

Fake tensors have shapes and a device but no values, so whatever has to read a value fails:
``.item()``, ``nonzero``, a branch on a tensor. The autograd engine takes no fake GPU; there fake
tensors of the CPU go the way of other devices.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ltm_mm.kernels import use_kernels
from ltm_mm.layers.window_attention import window_tables
from ltm_mm.merging.masks import shift_tables
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

SIZES = [pytest.param((64, 96), marks=pytest.mark.slow), (75, 118)]  # whole windows, or padding
SWIN = dict(embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))
MODELS: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: LTMSwin(**SWIN, keep=0.4),
    "swin-plain": lambda: LTMSwin(**SWIN, keep=None),
    "vit": lambda: LTMViT("tiny", "fast", embed_dims=24, num_heads=2, num_layers=3),
    "efficientvit": lambda: LTMEfficientViT("b0", keep="fast"),
    "mobilevit": lambda: LTMMobileViT("xxs", keep="fast"),
}
READS = ("aten.item", "local_scalar_dense", "nonzero", "sym_constrain_range")
models = pytest.mark.parametrize("name", MODELS)
# The steps of the families with convolutions take longest; their masks run in the passes, too.
SLOW = ("efficientvit", "mobilevit")
steps = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS]
)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def fake(model: nn.Module, device: str) -> nn.Module:
    """A model with fake parameters and buffers, on a device that need not be there."""
    made: dict[int, Tensor] = {}  # shared ones stay shared

    def like(own: Tensor | None) -> Tensor | None:
        if own is not None and id(own) not in made:
            new = torch.empty(own.shape, dtype=own.dtype, device=device)
            made[id(own)] = nn.Parameter(new) if isinstance(own, nn.Parameter) else new
        return None if own is None else made[id(own)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({key: like(own) for key, own in held.items()})
    return model


class Copies(TorchDispatchMode):
    """Counts what is copied from the CPU to another device: each waits for the host's memory."""

    count = 0

    def __torch_dispatch__(
        self, op: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = op(*args, **(kwargs or {}))
        tensors = [t for t in (out, *args) if isinstance(t, Tensor)]
        self.count += {t.device.type for t in tensors if t.dim()} == {"cpu", "cuda"}
        return out


@models
@sizes
def test_forward_on_a_gpu_waits_for_nothing(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]().eval()
    # Tables are made once per device; fake ones are kept for this test alone.
    for place, table in (
        ("ltm_mm.layers.window_attention.window_tables", window_tables),
        ("ltm_mm.merging.masks.shift_tables", shift_tables),
    ):
        monkeypatch.setattr(place, functools.cache(table.__wrapped__))
    with FakeTensorMode(), torch.no_grad():
        fake(model, "cuda")
        x = torch.empty(2, 3, *size, device="cuda")
        model(x)
        with Copies() as copies:
            maps = model(x)
        assert {m.device.type for m in maps} == {"cuda"}
        assert copies.count == 0


@steps
@sizes
def test_training_step_waits_for_nothing(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]().train()
    elsewhere(monkeypatch)
    with FakeTensorMode(), use_kernels(False):
        fake(model, "cpu")
        maps = model(torch.empty(2, 3, *size))
        sum(m.square().mean() for m in maps).backward()
        assert all(p.grad is not None for p in model.parameters())


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of the CPU go the way of other devices."""
    for place in ("ltm_mm.ops.groups.by_index", "ltm_mm.merging.matching.by_index"):
        monkeypatch.setattr(place, lambda _: False)
    monkeypatch.setattr("ltm_mm.kernels.attention._may_differentiate_twice", lambda _: False)


def test_what_reads_values_is_found() -> None:
    """The CPU's way picks the windows with several regions: a shape that depends on data."""
    model = MODELS["swin"]().eval()
    errors = (DataDependentOutputException, DynamicOutputShapeException)
    with FakeTensorMode(), torch.no_grad(), pytest.raises(errors):
        fake(model, "cpu")(torch.empty(2, 3, 64, 96))


@pytest.mark.parametrize("name", [pytest.param("swin", marks=pytest.mark.slow), "vit"])
def test_exported_graph_has_no_shape_that_depends_on_data(name: str) -> None:
    model = MODELS[name]().eval()
    program = torch.export.export(model, (torch.randn(2, 3, 75, 118),), strict=False)
    reads = [node for node in program.graph.nodes if any(r in str(node.target) for r in READS)]
    assert program.graph.nodes
    assert reads == []

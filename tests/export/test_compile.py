"""``torch.compile``: no graph break, and no new graph for a new image size.

The first size is compiled as it is, the second one makes the graph dynamic: that is
PyTorch's default. Batches of one image, and grids of a single window, have graphs of their
own there.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from ltm_mm.models import LTMEfficientViT, LTMSwin
from tests.models.contract import randomise

STAGES = dict(embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))


@pytest.fixture(autouse=True)
def _from_nothing() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(compiled: nn.Module, model: nn.Module, batch: int, size: tuple[int, int]) -> None:
    x = torch.randn(batch, 3, *size)
    with torch.no_grad():
        for a, b in zip(compiled(x), model(x), strict=True):
            # Sharp masks carry rounding further.
            assert_close(a, b, rtol=5e-4, atol=5e-4)


def in_two_graphs(model: nn.Module, sizes: list[tuple[int, int]], batch: int = 2) -> None:
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for k, size in enumerate(sizes):
        same(compiled, model, batch, size)
        assert counter.frame_count == min(k + 1, 2), size


def test_swin_has_one_graph_for_all_sizes():
    one = dict(embed_dims=8, depths=(2,), num_heads=(1,), strides=(4,), out_indices=(0,))
    model = randomise(LTMSwin(**one, slots=((7, 5),))).eval()
    # Whole windows or not, in the one direction, the other, or both.
    in_two_graphs(model, [(96, 160), (112, 224), (130, 131), (75, 118), (224, 117), (257, 336)])


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, "light", "balanced", "fast"])
def test_whole_swin_has_one_graph_for_all_sizes(slots):
    small = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    model = randomise(LTMSwin(**small, slots=slots)).eval()
    in_two_graphs(model, [(256, 320), (448, 480), (290, 331), (300, 672)])
    torch._dynamo.reset()
    in_two_graphs(model, [(256, 320), (448, 480), (290, 331), (300, 672)], batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, "light", "balanced", "fast"])
def test_efficientvit_has_one_graph_for_all_sizes(slots):
    model = randomise(LTMEfficientViT("b0", slots=slots)).eval()
    in_two_graphs(model, [(288, 320), (320, 384), (300, 331), (417, 290)])


def test_training_compiles_without_a_break():
    model = randomise(LTMSwin(**STAGES, slots="fast", drop_path_rate=0.0)).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, gradients = torch.randn(2, 3, 96, 117), []
    for run in (model, compiled):
        model.zero_grad()
        sum(m.square().mean() for m in run(x)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "efficientvit"])
def test_compiled_equals_eager(family):
    """The real compiler, on three sizes and two batches."""
    if family == "swin":
        model = randomise(LTMSwin(**STAGES, slots="fast")).eval()
    else:
        model = randomise(LTMEfficientViT("b0", slots="fast")).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch in (1, 2):
        for size in [(288, 320), (320, 384), (301, 331)]:
            same(compiled, model, batch, size)

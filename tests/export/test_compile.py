"""``torch.compile``: no graph break, and no new graph for a new image size.

The first size is compiled as it is, the second one makes the graph dynamic: that is
PyTorch's default. Batches of one image, grids of a single window, and rounds of matching that
merge a single pair have graphs of their own there.
"""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from ltm_mm.merging import rounds
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from ltm_mm.models.backbones.global_blocks import GlobalMatch
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


@pytest.mark.slow  # test_whole.py traces a graph of all sizes
def test_swin_has_one_graph_for_all_sizes():
    one = dict(embed_dims=8, depths=(2,), num_heads=(1,), strides=(4,), out_indices=(0,))
    model = randomise(LTMSwin(**one, keep=((None, 25),))).eval()  # shifted windows
    # Whole windows or not, in the one direction, the other, or both.
    in_two_graphs(model, [(96, 160), (112, 224), (130, 131), (75, 118), (224, 117), (257, 336)])


@pytest.mark.slow
def test_vit_has_one_graph_for_all_sizes():
    vit = dict(arch="tiny", embed_dims=24, num_heads=2, num_layers=3)
    model = randomise(LTMViT(**vit, keep=((196, 100, 70),))).eval()
    in_two_graphs(model, [(96, 160), (112, 224), (130, 131), (75, 118)])


def test_rounds_of_a_plan_can_be_done_on_every_grid():
    """At most half of the groups merge in a round, as each A may once."""
    for tokens, before, keep in ((196, 196, 1), (196, 100, 99), (196, 7, 3), (64, 38, 13)):
        left = (before, *GlobalMatch(keep, before, tokens).left)
        assert left[-1] == keep
        assert [a - b for a, b in pairwise(left)] == [*rounds(before, keep)]
        for whole in (*range(1, 300), 1024, 3800):
            for a, b in pairwise((whole * count + tokens - 1) // tokens for count in left):
                assert 0 <= a - b <= a // 2


@pytest.mark.slow
def test_mobilevit_has_one_graph_for_all_sizes():
    model = randomise(LTMMobileViT("xxs", keep="fast")).eval()
    # Patches that fit the maps or not.
    in_two_graphs(model, [(160, 192), (224, 288), (200, 331), (256, 319)])


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, "light", "balanced", "fast"])
def test_whole_swin_has_one_graph_for_all_sizes(keep):
    small = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    model = randomise(LTMSwin(**small, keep=keep)).eval()
    in_two_graphs(model, [(256, 320), (448, 480), (290, 331), (300, 672)])
    torch._dynamo.reset()
    in_two_graphs(model, [(256, 320), (448, 480), (290, 331), (300, 672)], batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, "light", "balanced", "fast"])
def test_efficientvit_has_one_graph_for_all_sizes(keep):
    model = randomise(LTMEfficientViT("b0", keep=keep)).eval()
    in_two_graphs(model, [(288, 320), (320, 384), (300, 331), (417, 290)])


def test_training_compiles_without_a_break():
    one = dict(embed_dims=8, depths=(1,), num_heads=(1,), strides=(4,), out_indices=(0,))
    model = randomise(LTMSwin(**one, keep=25, drop_path_rate=0.0)).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, gradients = torch.randn(2, 3, 96, 117), []
    for run in (model, compiled):
        model.zero_grad()
        sum(m.square().mean() for m in run(x)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "efficientvit", "vit", "mobilevit"])
def test_compiled_equals_eager(family):
    """The real compiler, on three sizes and two batches."""
    model = {
        "swin": lambda: LTMSwin(**STAGES, keep="fast"),
        "efficientvit": lambda: LTMEfficientViT("b0", keep="fast"),
        "vit": lambda: LTMViT("tiny", "fast", embed_dims=24, num_heads=2, num_layers=3),
        "mobilevit": lambda: LTMMobileViT("xxs", keep="fast"),
    }[family]()
    randomise(model).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch in (1, 2):
        for size in [(288, 320), (320, 384), (301, 331)]:
            same(compiled, model, batch, size)

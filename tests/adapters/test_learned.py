"""What was learned, put on models: wrapped ones, parts, without memory, with a plan of its own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.families import swin_stages
from ltm_mm.checkpoints.learned import Learned, sizes_of, weights_digest
from ltm_mm.merging import Detail, MaskModule

from .sources import build, torchvision_swin


def learned_for(model: nn.Module, weights: bool = False, first_stage: int = 0) -> Learned:
    """As if learned: a detail for every block from a stage on, weights that are a little off."""
    stages = swin_stages(model)
    widths, depths = sizes_of(stages)
    details = {
        (stage, block): Detail(widths[stage]).eval()
        for stage in range(first_stage, len(depths))
        for block in range(depths[stage])
    }
    other = {name: p.detach() + 0.1 for name, p in model.named_parameters()} if weights else None
    return Learned(details, widths, depths, weights_digest(stages), ("balanced",), other)


class Detector(nn.Module):
    """A model with a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build("torchvision")


@pytest.mark.parametrize(
    "remove",
    [
        lambda model: ltm_mm.remove(nn.DataParallel(model)),
        lambda model: ltm_mm.remove(torch.compile(model, backend="eager")),
        lambda model: ltm_mm.remove(model.backbone),
    ],
    ids=["wrapper", "compiled", "part"],
)
def test_weights_come_back_whoever_holds_the_model(remove: Callable[[nn.Module], object]) -> None:
    model = Detector()
    before = copy.deepcopy(model.state_dict())
    ltm_mm.apply(model, detail=learned_for(model, weights=True))
    remove(model)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapped_model_takes_learned_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = build("torchvision")
    learned = learned_for(model, weights=True)
    ltm_mm.apply(wrap(model), detail=learned)
    assert_close(model.head.bias.detach(), learned.weights["head.bias"], rtol=0, atol=0)


@pytest.mark.parametrize("detail", [3, {}, b"learned.pth", nn.Identity(), Detail(16)])
def test_what_is_no_detail(detail: object) -> None:
    with pytest.raises(ValueError, match=r"detail must be what ltm_mm\.learn returned"):
        ltm_mm.apply(build("torchvision"), detail=detail)


@pytest.mark.parametrize("keep", [None, "none", 49])
@pytest.mark.parametrize("weights", [False, True])
def test_a_plan_that_merges_nothing_takes_no_detail(keep: object, weights: bool) -> None:
    """Weights would be in the model for good: nothing is applied that could be removed."""
    model = build("torchvision")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="merges nothing, so there is nothing to correct"):
        ltm_mm.apply(model, keep, detail=learned_for(model, weights))
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_model_without_memory_takes_a_detail() -> None:
    learned = learned_for(build("torchvision"))
    with torch.device("meta"):
        model = ltm_mm.apply(torchvision_swin().eval(), detail=learned)
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 5)


def test_blocks_that_it_was_not_learned_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("ltm_mm.checkpoints.learned.print_log", lambda text, *_: said.append(text))
    model = build("torchvision")
    learned = learned_for(model, first_stage=2)
    ltm_mm.apply(model, "balanced", detail=learned)
    assert said == []
    ltm_mm.apply(ltm_mm.remove(model), "fast", detail=learned)
    merging = [m for m in model.modules() if isinstance(m, MaskModule)]
    lacking = sum(m.detail is None for m in merging)
    assert 0 < lacking < len(merging)
    assert said == [
        f"the detail was learned for balanced and has none for {lacking} of the blocks that merge "
        "(block 1 of stage 0, block 1 of stage 1): learn it for this plan"
    ]


def test_scripting_is_refused_with_its_reason() -> None:
    model = ltm_mm.apply(build("torchvision"))
    with pytest.raises(ValueError, match=r"torch\.jit\.script cannot compile blocks that merge"):
        torch.jit.script(model)
    torch.jit.script(ltm_mm.remove(model))


@pytest.mark.parametrize("model", [None, "swin", {}])
def test_remove_takes_models(model: object) -> None:
    with pytest.raises(ValueError, match="model must be a built model"):
        ltm_mm.remove(model)

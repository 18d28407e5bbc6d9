"""What a family has that is a backbone file and a record; `tests/test_families.py` runs it.

It runs in a copy of the package, to which the two pieces of docs/add-a-backbone.md are added.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm import models
from ltm_mm.adapters.copies import whole_plan
from ltm_mm.analysis.benchmark.baselines import build_models
from ltm_mm.analysis.benchmark.flops import count_macs
from ltm_mm.analysis.fidelity.baselines import Pool, pooled
from ltm_mm.analysis.plan.measure import MeasuredModel, MergeVariants, known_errors, units_of
from ltm_mm.checkpoints import load_backbone
from ltm_mm.engine.build import model_builder, named_config
from ltm_mm.errors import no_such_type
from ltm_mm.families import NAMED
from ltm_mm.merging import merging_blocks
from ltm_mm.registry import MODELS
from tests.models.contract import BackboneContract


class Reference(nn.Module):
    """The network of its authors, with their names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"conv": nn.Conv2d(3, 16, 7, 4, 3)})
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(16, 16)}) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.first["conv"](x).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = x + layer["mlp"](x).tanh()
        return (x.permute(0, 3, 1, 2),)


class TestLaws(BackboneContract):
    """The contract, without what is of backbones of several stages."""

    stages = plan_entries = merging_stages = 1
    tokens = 16
    side = 128
    like = 0.9
    test_checkpointing_changes_nothing_but_memory = None
    test_frozen_stages_stay_as_they_are = None
    test_out_indices_choose_the_maps = None
    test_what_no_map_needs_is_not_built = None
    test_loads_the_reference_with_only_masks_missing = None

    def build(self, **kwargs: object) -> nn.Module:
        return MODELS.build(dict(type="ltm_mm.TinyNet", **kwargs))

    def reference(self) -> nn.Module:
        return Reference()

    def load_reference(self, model: nn.Module, reference: nn.Module, strict: bool) -> object:
        report = load_backbone(model, reference.state_dict())
        assert [*report.fresh, *report.unused] == []
        return report

    def branch_ends(self, model: nn.Module) -> list[nn.Module]:
        return [block.mlp for block in model.blocks]


def test_names() -> None:
    assert Path(ltm_mm.__file__).parent.parent == Path.cwd()  # the copy
    assert models.TinyNet is MODELS.get("ltm_mm.TinyNet")
    assert "ltm-tiny-{a,b}" in NAMED
    assert "ltm_mm.TinyNet" in no_such_type("ltm_mm.TinyNot", "model")


def test_presets_are_the_records() -> None:
    assert models.TinyNet(keep="fast").plan == ((8, 4, 4),)
    with pytest.raises(ValueError, match="'fastest' exists only for a Swin"):
        models.TinyNet(keep="fastest")
    with pytest.raises(ValueError, match="'paper' exists only for swin"):
        models.TinyNet(keep="paper")


def test_plans() -> None:
    build = model_builder(named_config("ltm-tiny-a"))
    plain = build(None)
    assert whole_plan(plain) == ("tiny", ((16,) * 3,))
    assert [unit.plain for unit in units_of(plain, plain.plan)] == [(16,)] * 3
    measured = MeasuredModel(build, "tiny", plain.plan, lambda model, image: model(image))
    variants = MergeVariants.of(measured, progress=False)
    assert [len(modules) for modules in variants.modules] == [5, 5, 5]
    assert all(min(errors.values()) == 0 for errors in known_errors(variants))


def test_benchmarks_and_baselines() -> None:
    plain, fast = build_models("ltm-tiny-b", ["none", "fast"]).values()
    image = torch.randn(1, 3, 64, 64)
    counts = [count_macs(model, image) for model in (plain, fast)]
    assert counts[1].total < counts[0].total
    assert counts[0].by_part["mlp"] == 16 * 16 * 3 * 32 * 32
    assert [block.merge.keep for _, block in merging_blocks(fast)] == [8, 4, 4]
    assert sum(isinstance(module, Pool) for module in pooled(fast).modules()) == 3
    with pytest.raises(ltm_mm.errors.UserError, match="timm has no counterpart of"):
        build_models("ltm-tiny-a", ["fast"], ["timm"])
    maps = [model(image)[0] for model in (plain, fast)]
    assert maps[0].shape == maps[1].shape == (1, 32, 16, 16)


def test_checkpoints_and_configs() -> None:
    from ltm_mm.engine.convert import use_ltm

    reference = Reference()
    config = named_config("ltm-tiny-a")
    assert use_ltm(config, 0.5) == ["model.backbone: ltm_mm.TinyNet -> ltm_mm.TinyNet (keep=0.5)"]
    model = models.TinyNet(keep=None)
    load_backbone(model, {"state_dict": reference.state_dict()})
    x = torch.randn(1, 3, 40, 40)
    assert_close(model(x)[0], reference(x)[0])

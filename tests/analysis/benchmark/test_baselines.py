"""Timm's counterparts of our backbones: the same network, weights brought over."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.analysis.benchmark import random_data
from ltm_mm.analysis.benchmark.baselines import build_models
from ltm_mm.checkpoints import load_backbone

NAMES = ["swin-tiny", "vit-tiny", "mobilevit-xxs", "efficientvit-b1"]
NAMES += [pytest.param(name, marks=pytest.mark.slow) for name in ("vit-small", "mobilevit-s")]


@pytest.mark.parametrize("name", NAMES)
def test_against_timm_is_the_same_network(name):
    size = (224, 224) if name == "swin-tiny" else (96, 128)  # timm pads windows otherwise
    theirs, ours = build_models(f"ltm-{name}", ["none"], ["timm"], size).values()
    load_backbone(ours, theirs.model.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, found = theirs.eval()(x), ours.eval()(x)
    if name == "swin-tiny":  # timm's maps are not normalised
        expected = [e.permute(0, 2, 3, 1) for e in expected]
        expected = [torch.nn.functional.layer_norm(e, e.shape[3:]) for e in expected]
        expected = [e.permute(0, 3, 1, 2) for e in expected]
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_random_labels_are_of_the_heads_classes():
    heads = {"rpn_head": 1, "bbox_head": 3, "mask_head": 3, "backbone": 0}
    model = nn.ModuleDict({name: nn.Identity() for name in heads})
    for name, count in heads.items():
        model[name].num_classes = count
    assert random_data._classes(model) == 3
    assert random_data._classes(nn.Identity()) == 80

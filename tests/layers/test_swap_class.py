"""Modules whose class is swapped for a while."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ltm_mm.layers.swap_class import SwappedClass, restore_class, swap_class


class Doubled(SwappedClass):
    """Twice what the module gives, plus an extra."""

    EXTRAS = ("more", "part")

    def forward(self, x):
        return 2 * super().forward(x) + self.more


def test_the_same_module_with_another_forward():
    layer = nn.Linear(2, 2)
    x, before, state = torch.randn(3, 2), dict(vars(layer)), layer.state_dict()
    plain = layer(x)
    swap_class(layer, Doubled, more=1.0, part=nn.LayerNorm(2))
    assert isinstance(layer, nn.Linear)
    assert (type(layer).__name__, type(layer).__module__) == ("Linear", nn.Linear.__module__)
    assert torch.equal(layer(x), 2 * plain + 1)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert torch.equal(twin(x), 2 * plain + 1)
    restore_class(layer)
    restore_class(layer)  # any other module stays as it is
    assert type(layer) is nn.Linear
    assert vars(layer).keys() == before.keys()
    assert list(layer.state_dict()) == list(state)
    assert torch.equal(layer(x), plain)


def test_a_class_swapped_once_more_is_not_restored():
    layer = nn.Linear(2, 2)
    swap_class(layer, Doubled, more=0.0, part=None)
    layer.__class__ = type("Sharded", (type(layer),), {})
    with pytest.raises(ValueError, match="Sharded has got another class since merging"):
        restore_class(layer)

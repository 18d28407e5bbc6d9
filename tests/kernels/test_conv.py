"""Convolution, normalisation and activation in one pass equal the three layers."""

import copy

import pytest
import torch
from timm.models.efficientvit_mit import ConvNormAct as TimmConvNormAct
from torch import nn
from torch.testing import assert_close

from ltm_mm.kernels import ConvNormAct, fold_convs


def layers(**options: object) -> nn.Module:
    block = TimmConvNormAct(8, 16, **{"kernel_size": 3, **options})
    if isinstance(block.norm, nn.BatchNorm2d):
        for tensor in (block.norm.running_mean, block.norm.weight.data, block.norm.bias.data):
            tensor.copy_(torch.randn(16))
        block.norm.running_var.copy_(torch.rand(16) + 0.5)
    return block.eval()


@pytest.mark.parametrize(
    "options",
    [
        dict(act_layer=nn.Hardswish),
        dict(act_layer=nn.ReLU, stride=2, bias=True),
        dict(act_layer=None, groups=8, kernel_size=5),
        dict(act_layer=nn.SiLU, kernel_size=1),  # not one that oneDNN applies
        dict(act_layer=nn.Hardswish, norm_layer=None),
    ],
)
@pytest.mark.parametrize("size", [(20, 17), (1, 2)])  # the map is larger, or the weights
def test_equals_the_layers(options, size):
    block, x = layers(**options), torch.randn(2, 8, *size)
    folded = ConvNormAct(block).eval()
    assert folded.state_dict().keys() == block.state_dict().keys()
    with torch.no_grad():
        assert_close(folded(x), block(x), rtol=1e-5, atol=1e-5)
    assert_close(folded(x), block(x), rtol=0, atol=0)  # with gradients: the layers themselves


def test_training_normalises_over_the_batch_and_counts_it():
    block, x = layers(act_layer=nn.Hardswish), torch.randn(2, 8, 20, 20)
    other = copy.deepcopy(block).train()
    folded = ConvNormAct(block).train()
    with torch.no_grad():
        assert_close(folded(x), other(x), rtol=0, atol=0)
        assert_close(folded.norm.running_mean, other.norm.running_mean, rtol=0, atol=0)
        assert_close(folded.eval()(x), other.eval()(x), rtol=1e-5, atol=1e-5)


def test_normalisation_as_last_trained_is_what_is_folded():
    block, x = layers(act_layer=nn.ReLU), torch.randn(2, 8, 20, 20)
    folded = ConvNormAct(block).eval()
    with torch.no_grad():
        folded(x)
        block.norm.weight.mul_(2)
        block.conv.weight.add_(0.1)
        assert_close(folded(x), block(x), rtol=1e-5, atol=1e-5)


def test_hooks_are_called():
    block, x = layers(act_layer=nn.ReLU), torch.randn(2, 8, 20, 20)
    block.conv.register_forward_hook(lambda *_: torch.zeros(2, 16, 20, 20))
    with torch.no_grad():
        assert_close(ConvNormAct(block).eval()(x), block(x), rtol=0, atol=0)


def test_all_of_timms_are_replaced():
    model = nn.Sequential(layers(), nn.ModuleDict({"a": layers()}))
    keys = list(model.state_dict())
    fold_convs(fold_convs(model))
    assert [type(model[0]), type(model[1]["a"])] == [ConvNormAct, ConvNormAct]
    assert list(model.state_dict()) == keys

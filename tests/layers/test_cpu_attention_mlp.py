"""timm's attention and MLP on the fast path equal timm's."""

import copy

import pytest
import timm
import torch
from timm.layers import Attention, AttentionRope, GluMlp, Mlp
from torch import nn
from torch.testing import assert_close

from ltm_mm.layers import fast_attention, fast_mlp
from ltm_mm.layers.cpu_attention_mlp import FastAttention, FastMlp


@pytest.mark.parametrize(
    "options",
    [{}, dict(qkv_bias=True), dict(qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention(options, masked):
    theirs = Attention(24, num_heads=3, **options).eval()
    ours = fast_attention(copy.deepcopy(theirs))
    assert isinstance(ours, FastAttention)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 11, 24, requires_grad=True)
    mask = torch.randn(2, 1, 1, 11) if masked else None
    found, expected = ours(x, attn_mask=mask), theirs(x, attn_mask=mask)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    grads = [
        torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
        for y, module in ((found, ours), (expected, theirs))
    ]
    assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU])
@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("training", [False, True])
def test_mlp(act, drop, training):
    theirs = Mlp(24, 96, act_layer=act, drop=drop).train(training)
    ours = fast_mlp(copy.deepcopy(theirs))
    assert isinstance(ours, FastMlp)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, found = torch.randn(2, 11, 24), []
    for module in (ours, theirs):
        torch.manual_seed(3)
        found.append(module(x))
    assert_close(*found, rtol=1e-5, atol=1e-6)


def test_what_is_built_otherwise_stays_as_it_is():
    for attention in (Attention(24, 3, gated=True), AttentionRope(24, 3)):
        assert not isinstance(fast_attention(attention), FastAttention)
    for mlp in (GluMlp(24), Mlp(24, norm_layer=nn.LayerNorm), Mlp(24, use_conv=True)):
        assert not isinstance(fast_mlp(mlp), FastMlp)
    attention = timm.create_model("vit_tiny_patch16_224", depth=1).blocks[0].attn
    assert fast_attention(attention) is attention
    assert isinstance(attention, FastAttention)

"""Linear layers, the MLP and window attention: the fast path equals PyTorch's own layers."""

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from ltm_mm.kernels import (
    add_by_rows,
    linear,
    mlp,
    run_linear,
    run_mlp,
    uses_onednn,
    window_attention,
)
from ltm_mm.ops import fused_attention
from tests.quantised import Int8Weight, quantise

linear_module = importlib.import_module("ltm_mm.kernels.linear")
mlp_module = importlib.import_module("ltm_mm.kernels.mlp")
SHAPES = [(7, 5, 3), (6, 8, 16), (130, 24, 8)]  # rows, C_in, C_out


@pytest.fixture(autouse=True)
def _one_dnn() -> None:
    if not uses_onednn(torch.ones(1, 1), torch.ones(1, 1)):
        pytest.skip("this build of PyTorch has no oneDNN linear layer for this processor")


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def same_gradients(output: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert_close(output, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((output * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs, retain_graph=True),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "c_in", "c_out"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorchs(rows, c_in, c_out, bias):
    x, w, b = tensors((2, rows, c_in), (c_out, c_in), (c_out,))
    given = [x, w, b] if bias else [x, w]
    same_gradients(linear(*given), F.linear(*given), given)
    with torch.no_grad():
        strided = x.transpose(0, 1)
        assert_close(linear(strided, w, b), F.linear(strided, w, b), rtol=1e-5, atol=1e-5)


def second_derivatives(function: Callable, given: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a penalty on the gradients."""
    grads = torch.autograd.grad(function(*given).sin().sum(), given, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in grads), given)


def test_linear_is_differentiable_twice():
    given = tensors((6, 5), (3, 5), (3,))
    found, expected = second_derivatives(linear, given), second_derivatives(F.linear, given)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [2**22, 64])
def test_mlp_is_differentiable_twice_and_for_several_gradients_at_once(chunk, monkeypatch):
    monkeypatch.setattr(mlp_module, "CHUNK", chunk)
    given = tensors((2, 7, 5), (16, 5), (16,), (5, 16), (5,))

    def fast(x, w1, b1, w2, b2):
        return mlp(x, (w1, b1), (w2, b2))

    def plain(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    derivatives, expected = second_derivatives(fast, given), second_derivatives(plain, given)
    assert_close(derivatives, expected, rtol=1e-4, atol=1e-4)
    grads = torch.randn(3, 2, 7, 5)
    derivatives, expected = (
        torch.autograd.grad(f(*given), given, grads, is_grads_batched=True) for f in (fast, plain)
    )
    assert_close(derivatives, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [2**22, 64, 1])
def test_rows_are_added_to_in_any_number_of_chunks(chunk, monkeypatch):
    monkeypatch.setattr(linear_module, "CHUNK", chunk)
    x, calls = torch.randn(2, 7, 5), []

    def update(rows):
        calls.append(rows.shape[:-1].numel())
        return rows.sin()

    with torch.no_grad():
        assert_close(add_by_rows(x, update, 16), x + x.sin())
    step = max(chunk // 16, 1)
    assert calls == [min(step, 14 - first) for first in range(0, 14, step)]


@pytest.mark.parametrize("chunk", [2**22, 64, 1])
def test_mlp_equals_pytorchs_in_any_number_of_chunks(chunk, monkeypatch):
    monkeypatch.setattr(mlp_module, "CHUNK", chunk)
    x, w1, b1, w2, b2 = given = tensors((2, 7, 5), (16, 5), (16,), (5, 16), (5,))
    expected = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    same_gradients(mlp(x, (w1, b1), (w2, b2)), expected, given)
    with torch.no_grad():
        assert_close(mlp(x, (w1, b1), (w2, b2)), expected, rtol=1e-5, atol=1e-5)


def test_frozen_layers_pass_the_gradient_on():
    x, *layers = tensors((4, 5), (16, 5), (16,), (5, 16), (5,))
    for layer in layers:
        layer.requires_grad_(False)
    w1, b1, w2, b2 = layers
    expected = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    same_gradients(mlp(x, (w1, b1), (w2, b2)), expected, [x])
    same_gradients(linear(x, w1, b1), F.linear(x, w1, b1), [x])


@pytest.mark.parametrize("windows_of_bias", [1, 6])
def test_attention_equals_the_fused_kernel(windows_of_bias):
    qkv, bias = given = tensors((6, 9, 3, 2, 4), (windows_of_bias, 2, 9, 9))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    expected = expected.transpose(1, 2).reshape(6, 9, 8)
    same_gradients(window_attention(qkv, bias, 0.3), expected, given)
    with torch.backends.mkldnn.flags(enabled=False):  # the fused kernel itself
        same_gradients(window_attention(qkv, bias, 0.3), expected, given)


@pytest.mark.parametrize("biased", [True, False])
def test_attention_written_out_for_exports_is_the_fused_kernel(biased, monkeypatch):
    q, k, v = torch.randn(3, 6, 2, 9, 4).unbind(0)
    bias = torch.randn(1, 2, 9, 9) if biased else None
    expected = fused_attention(q, k, v, bias, 0.3)
    monkeypatch.setattr("ltm_mm.ops.attention.exporting", lambda: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # not used there
    assert_close(fused_attention(q, k, v, bias, 0.3), expected, rtol=1e-5, atol=1e-6)


def test_attention_drops_weights():
    qkv, bias = torch.randn(64, 9, 3, 2, 4), torch.zeros(1, 2, 9, 9)
    qkv[:, :, 2] = 1.0  # values: without dropout every output is 1
    out = window_attention(qkv, bias, 0.3, dropout=0.5)
    assert_close(window_attention(qkv, bias, 0.3), torch.ones(64, 9, 8))
    assert out.std() > 0.1
    assert abs(out.mean() - 1) < 0.1


def test_only_what_onednn_takes_is_served():
    x, w = torch.randn(4, 3), torch.randn(2, 3)
    assert uses_onednn(x, w)
    assert not uses_onednn(x.double(), w.double())
    assert not uses_onednn(x.bfloat16(), w.bfloat16())
    assert not uses_onednn(x.to("meta"), w.to("meta"))
    assert not uses_onednn(x[:0], w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not uses_onednn(x, w)
        assert linear(x, w).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not uses_onednn(x, w)
    assert uses_onednn(x, nn.Parameter(w), None)
    assert not uses_onednn(x, w, torch.ones(2, dtype=torch.float64))
    assert not uses_onednn(x, w.to_sparse())
    assert not uses_onednn(x, Int8Weight.of(w))
    assert not uses_onednn(x, nn.Parameter(Int8Weight.of(w)))
    assert not uses_onednn(Int8Weight.of(x), w)
    with torch.autograd.forward_ad.dual_level():
        assert not uses_onednn(x, w)
    inside = []
    torch.func.vmap(lambda row: inside.append(uses_onednn(row, w)) or row)(x)
    torch.func.grad(lambda row: inside.append(uses_onednn(row, w)) or row.sum())(x)
    assert inside == [False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_not_served_is_pytorchs(dtype):
    x, w, b = (torch.randn(s, dtype=dtype) for s in ((4, 3), (2, 3), (2,)))
    assert_close(linear(x, w, b), F.linear(x, w, b), rtol=0, atol=0)


def test_layers_run_as_they_were_built():
    first, second, x = nn.Linear(5, 16), nn.Linear(16, 5), torch.randn(3, 5)
    for act in (nn.GELU(), nn.GELU("tanh"), nn.ReLU()):
        assert_close(run_mlp(first, act, second, x), second(act(first(x))), rtol=1e-5, atol=1e-5)
    no_bias = nn.Linear(16, 5, bias=False)
    assert_close(run_mlp(first, nn.GELU(), no_bias, x), no_bias(F.gelu(first(x))))

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    adapted = Adapted(5, 16)
    assert_close(run_linear(adapted, x), adapted(x), rtol=0, atol=0)
    assert_close(run_mlp(adapted, nn.GELU(), second, x), second(F.gelu(adapted(x))))


def test_hooks_on_layers_are_called():
    first, second, x = nn.Linear(5, 16), nn.Linear(16, 5), torch.randn(3, 5)
    first.register_forward_hook(lambda *_: torch.zeros(3, 16))
    assert_close(run_mlp(first, nn.GELU(), second, x), second.bias.expand(3, 5))
    assert not run_linear(first, x).any()


@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_layers_with_other_tensors_run_as_pytorch_runs_them(which):
    first, second, x = nn.Linear(5, 16), nn.Linear(16, 5), torch.randn(3, 5)
    for name, layer in (("first", first), ("second", second)):
        if which in (name, "both"):
            quantise(layer)
    with torch.no_grad():
        expected = second(F.gelu(first(x)))
        assert_close(run_mlp(first, nn.GELU(), second, x), expected, rtol=1e-5, atol=1e-5)
        assert_close(run_linear(first, x), first(x), rtol=1e-5, atol=1e-5)

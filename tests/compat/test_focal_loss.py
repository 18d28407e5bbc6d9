"""Focal losses of the fallback against their formula, one number at a time."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("stand_in")

GAMMA, ALPHA = 1.7, 0.3
TARGET = [0, 2, 1, 3, 3, 0]  # of 3 classes: 3 is the sigmoid loss's background


def sigmoid_loop(logits: Tensor, target: Tensor, weight: list[float]) -> Tensor:
    loss = torch.zeros_like(logits)
    for n, row in enumerate(logits.tolist()):
        for c, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if target[n] == c:
                value = -ALPHA * (1 - p) ** GAMMA * math.log(p)
            else:
                value = -(1 - ALPHA) * p**GAMMA * math.log(1 - p)
            loss[n, c] = value * weight[target[n]]
    return loss


def softmax_loop(logits: Tensor, target: Tensor, weight: list[float]) -> Tensor:
    loss = torch.zeros(len(logits), dtype=logits.dtype)
    for n, row in enumerate(logits.tolist()):
        p = math.exp(row[target[n]]) / sum(math.exp(x) for x in row)
        loss[n] = -ALPHA * (1 - p) ** GAMMA * math.log(p) * weight[target[n]]
    return loss


def reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / len(loss)}[reduction]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sigmoid_equals_formula(reduction: str, device: str) -> None:
    from mmcv.ops import sigmoid_focal_loss

    torch.manual_seed(0)
    logits, target = 3 * torch.randn(6, 3), torch.tensor(TARGET)
    loss = sigmoid_focal_loss(
        logits.to(device), target.to(device), GAMMA, ALPHA, None, reduction
    ).cpu()
    expected = reduced(sigmoid_loop(logits, target, [1.0] * 4), reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_softmax_equals_formula(reduction: str, device: str) -> None:
    from mmcv.ops import softmax_focal_loss

    torch.manual_seed(0)
    logits, target = 3 * torch.randn(6, 4), torch.tensor(TARGET)
    loss = softmax_focal_loss(
        logits.to(device), target.to(device), GAMMA, ALPHA, None, reduction
    ).cpu()
    expected = reduced(softmax_loop(logits, target, [1.0] * 4), reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_weight_is_that_of_the_target_class() -> None:
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    torch.manual_seed(0)
    logits, target, weight = torch.randn(6, 4), torch.tensor(TARGET), [0.5, 2.0, 3.0, 0.1]
    for function, loop in ((sigmoid_focal_loss, sigmoid_loop), (softmax_focal_loss, softmax_loop)):
        loss = function(logits, target, GAMMA, ALPHA, torch.tensor(weight), "none")
        expected = loop(logits, target, weight)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_gradcheck(name: str, weighted: bool, gamma: float) -> None:
    import mmcv.ops

    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(TARGET)
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    function = getattr(mmcv.ops, name)
    assert gradcheck(lambda x: function(x, target, gamma, ALPHA, weight, "mean"), logits)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_extreme_logits_stay_finite(name: str, gamma: float) -> None:
    import mmcv.ops

    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    target = torch.tensor([0, 0])
    loss = getattr(mmcv.ops, name)(logits, target, gamma, ALPHA, None, "sum")
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_ignored_rows_of_softmax() -> None:
    from mmcv.ops import softmax_focal_loss

    logits = torch.randn(3, 4, requires_grad=True)
    target = torch.tensor([1, -1, 2])
    assert softmax_focal_loss(logits, target, GAMMA, ALPHA, None, "none")[1] == 0
    softmax_focal_loss(logits, target, GAMMA, ALPHA, None, "sum").backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[[0, 2]] != 0).all()

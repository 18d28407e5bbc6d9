"""The fallback against compiled mmcv (`make ops`), where that is installed.

The compiled functions of mmcv are called twice with the same inputs: as they
are, and with the fallback in place of ``mmcv._ext``. On the CPU, mmcv compiles no
focal loss and no deformable attention; those rows need a GPU and ops with CUDA.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .conftest import use_stand_in

pytestmark = pytest.mark.slow

Inputs = list[Tensor]
GPU_ONLY = [pytest.param("cuda", marks=pytest.mark.gpu)]
EVERYWHERE = ["cpu", *GPU_ONLY]


@pytest.fixture(autouse=True)
def compiled(device: str) -> None:
    ext = pytest.importorskip("mmcv._ext")
    if not ext.__file__.endswith((".so", ".pyd")):
        pytest.skip("mmcv has no compiled ops here: run `make ops` for this test")
    if device == "cuda" and ext.get_compiling_cuda_version() == "not available":
        pytest.skip("mmcv's ops were compiled without CUDA: run `FORCE_CUDA=1 make ops`")


def boxes(n: int = 300) -> Tensor:
    corner = torch.rand(n, 2) * 60
    return torch.cat((corner, corner + 1 + torch.rand(n, 2) * 40), dim=1)


def nms() -> tuple[Inputs, Callable]:
    from mmcv.ops import nms

    return [boxes(), torch.rand(300)], lambda b, s: nms(b, s, 0.4, 1, 0.2, 50)


def batched_nms() -> tuple[Inputs, Callable]:
    from mmcv.ops import batched_nms

    config = {"type": "nms", "iou_threshold": 0.5}
    inputs = [boxes(), torch.rand(300), torch.randint(0, 5, (300,))]
    return inputs, lambda b, s, i: batched_nms(b, s, i, config)


def soft_nms(method: str) -> tuple[Inputs, Callable]:
    from mmcv.ops import soft_nms

    return [boxes(), torch.rand(300)], lambda b, s: soft_nms(b, s, 0.3, 0.5, 0.1, method, 1)


def roi_align(ratio: int, aligned: bool) -> tuple[Inputs, Callable]:
    from mmcv.ops import roi_align

    rois = torch.cat((torch.randint(0, 2, (300, 1)), boxes() - 8), dim=1)
    images = torch.randn(2, 8, 20, 24).requires_grad_()
    return [images, rois], lambda x, r: roi_align(x, r, (7, 5), 0.25, ratio, "avg", aligned)


def deform_conv() -> tuple[Inputs, Callable]:
    from mmcv.ops import deform_conv2d

    inputs = [torch.randn(2, 4, 9, 8), torch.randn(2, 36, 5, 4), torch.randn(6, 2, 3, 3)]
    geometry = (2, 1, 1, 2, 2)  # stride, padding, dilation, groups, offset groups
    return with_gradients(inputs), lambda *tensors: deform_conv2d(*tensors, *geometry)


def modulated_deform_conv(with_bias: bool) -> tuple[Inputs, Callable]:
    from mmcv.ops import modulated_deform_conv2d

    inputs = [
        torch.randn(2, 4, 9, 8),
        torch.randn(2, 36, 5, 4),
        torch.rand(2, 18, 5, 4),
        torch.randn(6, 2, 3, 3),
    ] + [torch.randn(6)] * with_bias

    def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, offset, mask, weight, *(bias or [None]), 2, 1, 1, 2, 2)

    return with_gradients(inputs), run


def modulated_deform_conv_of_finer_offsets() -> tuple[Inputs, Callable]:
    """As mmdet's DyHead calls it: offsets and masks of a map twice as large."""
    from mmcv.ops import modulated_deform_conv2d

    shapes = [(2, 4, 5, 6), (2, 18, 10, 12), (2, 9, 10, 12), (8, 4, 3, 3)]
    inputs = [torch.randn(shape) for shape in shapes]

    def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)

    return with_gradients(inputs), run


def attention() -> tuple[Inputs, Callable]:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    inputs = [torch.randn(2, 26, 4, 8), torch.rand(2, 50, 4, 2, 4, 2), torch.rand(2, 50, 4, 2, 4)]

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor([(4, 5), (2, 3)], device=value.device)
        starts = torch.tensor([0, 20], device=value.device)
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    return with_gradients(inputs), run


def focal_loss(name: str, with_weight: bool) -> tuple[Inputs, Callable]:
    import mmcv.ops

    target, weight = torch.randint(0, 5, (64,)), torch.rand(5)

    def run(logits: Tensor) -> Tensor:
        optional = weight.to(logits) if with_weight else None
        function = getattr(mmcv.ops, name)
        return function(logits, target.to(logits.device), 2.0, 0.25, optional, "mean")

    return with_gradients([3 * torch.randn(64, 5)]), run


def with_gradients(tensors: Inputs) -> Inputs:
    return [tensor.requires_grad_() for tensor in tensors]


def results(inputs: Inputs, function: Callable) -> Inputs:
    """What the function returns and, where it has them, the gradients of its inputs."""
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if not leaves:
        return outputs
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    return outputs + list(torch.autograd.grad((outputs[0] * weights.to(outputs[0])).sum(), leaves))


def compare(case: Callable, args: tuple, device: str) -> None:
    torch.manual_seed(0)
    inputs, function = case(*args)
    inputs = [t.detach().to(device).requires_grad_(t.requires_grad) for t in inputs]
    expected = results(inputs, function)
    with pytest.MonkeyPatch.context() as patch:
        use_stand_in(patch)
        found = results(inputs, function)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize(
    ("case", "args"),
    [
        (nms, ()),
        (batched_nms, ()),
        (soft_nms, ("naive",)),
        (soft_nms, ("linear",)),
        (soft_nms, ("gaussian",)),
        (roi_align, (0, True)),
        (roi_align, (0, False)),
        (roi_align, (2, True)),
        (roi_align, (2, False)),
        (deform_conv, ()),
        (modulated_deform_conv, (False,)),
        (modulated_deform_conv, (True,)),
        (modulated_deform_conv_of_finer_offsets, ()),
    ],
)
def test_equals_compiled(case: Callable, args: tuple, device: str) -> None:
    compare(case, args, device)


@pytest.mark.parametrize("device", GPU_ONLY)
@pytest.mark.parametrize(
    ("case", "args"),
    [
        (attention, ()),
        (focal_loss, ("sigmoid_focal_loss", False)),
        (focal_loss, ("sigmoid_focal_loss", True)),
        (focal_loss, ("softmax_focal_loss", False)),
        (focal_loss, ("softmax_focal_loss", True)),
    ],
)
def test_equals_compiled_on_gpu(case: Callable, args: tuple, device: str) -> None:
    compare(case, args, device)


@pytest.mark.parametrize("device", ["cpu"])
def test_mask_rcnn_trains_alike(device: str) -> None:
    """Three steps of SGD from the same seed: the losses of both agree."""
    from .test_detectors import batch, mask_rcnn

    def losses() -> list[float]:
        torch.manual_seed(0)
        model = mask_rcnn()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        totals = []
        for _ in range(3):
            data = model.data_preprocessor(batch(device), training=True)
            total, _ = model.parse_losses(model(**data, mode="loss"))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
        return totals

    expected = losses()
    with pytest.MonkeyPatch.context() as patch:
        use_stand_in(patch)
        assert losses() == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 3

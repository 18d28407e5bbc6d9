"""Deformable attention and convolution of the fallback against loops over samples."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("stand_in")

SHAPES = [(4, 5), (2, 3)]
STARTS = [0, 20]
CONV = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "deform_groups": 2}


def sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear value ``(C,)`` of ``(C, H, W)`` at pixel centres y, x; zero outside."""
    value = image[:, 0, 0] * 0
    top, left = math.floor(y.item()), math.floor(x.item())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                value = value + share * image[:, row, column]
    return value


def attention_loop(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads = locations.shape[:3]
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    for b, q, h, level, point in torch.cartesian_prod(
        *(torch.arange(n) for n in weights.shape)
    ).tolist():
        height, width = SHAPES[level]
        pixels = value[b, STARTS[level] : STARTS[level] + height * width, h]
        x, y = locations[b, q, h, level, point]
        image = pixels.T.unflatten(1, (height, width))
        drawn = sample(image, y * height - 0.5, x * width - 0.5)
        place = torch.zeros_like(output)
        place[b, q, h] = 1
        output = output + place * weights[b, q, h, level, point] * drawn
    return output.flatten(2)


def attention_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    value = torch.randn(2, 26, 2, 4, dtype=dtype)
    locations = torch.rand(2, 3, 2, 2, 2, 2, dtype=dtype) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 3, 2, 2, 2, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, locations, weights)]


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The way that mmcv goes on CUDA tensors."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor(SHAPES, device=value.device)
    starts = torch.tensor(STARTS, device=value.device)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def conv_loop(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    batch, channels = x.shape[:2]
    kernel_h, kernel_w = weight.shape[2:]
    taps = kernel_h * kernel_w
    offset_groups, groups = CONV["deform_groups"], CONV["groups"]
    columns = []
    for b, i, j in torch.cartesian_prod(
        torch.arange(batch), *(torch.arange(n) for n in offset.shape[2:])
    ).tolist():
        drawn = []
        for group in range(offset_groups):
            share = channels // offset_groups
            image = x[b, group * share : (group + 1) * share]
            for tap in range(taps):
                k, m = divmod(tap, kernel_w)
                at = 2 * (group * taps + tap)
                row = i * CONV["stride"][0] - CONV["padding"][0] + k * CONV["dilation"][0]
                column = j * CONV["stride"][1] - CONV["padding"][1] + m * CONV["dilation"][1]
                value = sample(image, row + offset[b, at, i, j], column + offset[b, at + 1, i, j])
                drawn.append(value if mask is None else value * mask[b, at // 2, i, j])
        sampled = torch.stack(drawn).unflatten(0, (offset_groups, taps)).transpose(1, 2)
        sampled = sampled.reshape(groups, channels // groups, kernel_h, kernel_w)
        kernels = weight.unflatten(0, (groups, -1))
        columns.append(torch.einsum("gckm,gockm->go", sampled, kernels).flatten())
    return torch.stack(columns, 1).unflatten(1, (batch, *offset.shape[2:])).transpose(0, 1)


def conv_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 4, dtype=dtype)
    offset = torch.randn(2, 2 * 2 * 6, 3, 4, dtype=dtype)  # 3 x 2 kernel: output 3 x 6
    weight = torch.randn(6, 2, 3, 2, dtype=dtype)
    mask = torch.rand(2, 2 * 6, 3, 4, dtype=dtype)
    bias = torch.randn(6, dtype=dtype)
    offset, mask = (torch.cat((t, t.flip(3)[..., :2]), dim=3) for t in (offset, mask))
    return [tensor.requires_grad_() for tensor in (x, offset, weight, mask, bias)]


def plain_conv(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    from mmcv.ops import deform_conv2d

    return deform_conv2d(x, offset, weight, *CONV.values())


def modulated_conv(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    from mmcv.ops import modulated_deform_conv2d

    return modulated_deform_conv2d(x, offset, mask, weight, bias, *CONV.values())


def assert_same(
    output: Tensor, inputs: list[Tensor], expected: Tensor, references: list[Tensor]
) -> None:
    """Values, and gradients of a random weighting, on whole tensors."""
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((output * weights.to(output)).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), references)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.cpu(), expected_grad, rtol=1e-5, atol=2e-5)


def copies(tensors: list[Tensor], device: str) -> list[Tensor]:
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


def test_attention_equals_loop(device: str) -> None:
    references = attention_inputs()
    inputs = copies(references, device)
    assert_same(attend(*inputs), inputs, attention_loop(*references), references)


def test_attention_gradcheck() -> None:
    value, locations, weights = attention_inputs(torch.float64)
    assert gradcheck(attend, (value[:1, :, :1, :2], locations[:1, :, :1], weights[:1, :, :1]))


def test_attention_module_trains(device: str) -> None:
    """The layer that Mask2Former's pixel decoder and DINO's encoder are made of."""
    from mmcv.ops import MultiScaleDeformableAttention

    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(16, 2, 2, 2, batch_first=True).to(device)
    query = torch.randn(2, 26, 16, device=device)
    output = module(
        query,
        reference_points=torch.rand(2, 26, 2, 2, device=device),
        spatial_shapes=torch.tensor(SHAPES, device=device),
        level_start_index=torch.tensor(STARTS, device=device),
    )
    output.square().mean().backward()
    assert output.shape == query.shape
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_convolution_equals_loop(device: str) -> None:
    references = conv_inputs()[:3]
    inputs = copies(references, device)
    assert_same(plain_conv(*inputs), inputs, conv_loop(*references, None), references)


@pytest.mark.parametrize("with_bias", [False, True])
def test_modulated_convolution_equals_loop(with_bias: bool, device: str) -> None:
    references = conv_inputs()[: 5 if with_bias else 4]
    inputs = copies(references, device)
    expected = conv_loop(*references[:4])
    if with_bias:
        expected = expected + references[4][:, None, None]
    assert_same(modulated_conv(*inputs), inputs, expected, references)


@pytest.mark.parametrize("n", [3, 4, 5], ids=["plain", "modulated", "with bias"])
def test_convolution_gradcheck(n: int) -> None:
    tensors = conv_inputs(torch.float64)[:n]
    tensors[0], tensors[1] = tensors[0][:1], tensors[1][:1]
    if n > 3:
        tensors[3] = tensors[3][:1]
    assert gradcheck(plain_conv if n == 3 else modulated_conv, tensors, fast_mode=True)


def test_convolution_in_bfloat16() -> None:
    x, offset, weight, mask, bias = (tensor.detach() for tensor in conv_inputs())
    expected = modulated_conv(x, offset, weight, mask, bias)
    half = [tensor.bfloat16() for tensor in (x, offset, weight, mask, bias)]
    output = modulated_conv(*half)
    assert output.dtype == torch.bfloat16
    exact = modulated_conv(*(tensor.float() for tensor in half))
    torch.testing.assert_close(output, exact.bfloat16())
    assert (output - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_finer_offsets_are_read_as_mmcv_reads_them() -> None:
    """mmdet's DyHead gives a map's convolution the offsets of one twice as large."""
    from mmcv.ops import modulated_deform_conv2d

    x, weight = torch.randn(2, 4, 5, 6), torch.randn(8, 4, 3, 3)
    offset, mask = torch.randn(2, 18, 10, 12), torch.rand(2, 9, 10, 12)
    found = modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)
    read_offset = torch.stack([o.flatten()[: 18 * 30].view(18, 5, 6) for o in offset])
    read_mask = torch.stack([m.flatten()[: 9 * 30].view(9, 5, 6) for m in mask])
    expected = modulated_deform_conv2d(x, read_offset, read_mask, weight, None, 1, 1, 1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

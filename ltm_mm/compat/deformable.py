"""Deformable attention and convolution as mmcv's ``_ext`` offers them.

Attention (Zhu et al., ICLR 2021) goes through mmcv's own PyTorch version, which
mmcv itself uses only on the CPU; convolution (Dai et al., ICCV 2017; Zhu et al.,
CVPR 2019) through torchvision's kernel, which has mmcv's offset layout. The
gradients come from running the forward again under autograd.

Arguments that are mmcv's work space (``columns``, ``ones``), its tiling
(``im2col_step``) or sizes that the tensors tell as well are not used.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torchvision
from torch import Tensor

from ltm_mm.compat.precision import wide

Geometry = list[tuple[int, int]]  # stride, padding and dilation, of rows and columns
# What mmcv calls them, with and without modulation.
SIZES = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
MODULATED_SIZES = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")


def _write_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_output: Tensor,
    buffers: Sequence[Tensor],
) -> None:
    """Copy the gradient of ``function(*inputs)`` by each input into its buffer."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*leaves)
    grads = torch.autograd.grad(output, leaves, grad_output.to(output))
    for buffer, grad in zip(buffers, grads, strict=True):
        buffer.copy_(grad)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted bilinear samples of several feature levels.

    Args:
        value: ``(B, K, heads, D)``, the levels' pixels one after another.
        value_spatial_shapes: ``(levels, 2)``, height and width.
        value_level_start_index: ``(levels,)``; follows from the shapes, not used.
        sampling_locations: ``(B, Q, heads, levels, points, 2)``, x y in 0..1.
        attention_weights: ``(B, Q, heads, levels, points)``.
        im2col_step: not used.

    Returns:
        ``(B, Q, heads * D)``.
    """
    # That module asks for this one while it is imported, hence not at the top.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes.tolist(), sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradient of :func:`ms_deform_attn_forward`, into the last three tensors."""

    def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )

    _write_gradients(
        attention,
        (value, sampling_locations, attention_weights),
        grad_output,
        (grad_value, grad_sampling_loc, grad_attn_weight),
    )


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Deformable convolution without bias, into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(out, C / groups, kH, kW)``.
        offset: ``(B, deform_groups * 2 * kH * kW, H_out, W_out)``, y x pairs in pixels.
        output: ``(B, out, H_out, W_out)``, written.
        **sizes: ``SIZES``; others are not used.
    """
    geometry = _geometry(sizes, SIZES)
    output.copy_(_convolve(geometry, input, offset, weight))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` by input and offset, into the ``grad_`` tensors."""
    geometry = _geometry(sizes, SIZES)
    _write_gradients(
        lambda input, offset: _convolve(geometry, input, offset, weight),
        (input, offset),
        grad_output,
        (grad_input, grad_offset),
    )


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **sizes: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` by the weight, times ``scale``."""
    geometry = _geometry(sizes, SIZES)
    # The convolution is linear in its weight: where the gradient is taken does not matter.
    _write_gradients(
        lambda weight: _convolve(geometry, input, offset, weight),
        (torch.zeros_like(grad_weight),),
        scale * grad_output,
        (grad_weight,),
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Modulated deformable convolution, into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(out, C / groups, kH, kW)``.
        bias: ``(out,)``, used where ``with_bias``.
        offset: ``(B, deform_groups * 2 * kH * kW, H_out, W_out)``, y x pairs in pixels.
        mask: ``(B, deform_groups * kH * kW, H_out, W_out)``, factor of each sample.
        output: ``(B, out, H_out, W_out)``, written.
    """
    geometry = _geometry(sizes, MODULATED_SIZES)
    optional = (bias,) if with_bias else ()
    output.copy_(_convolve(geometry, input, offset, weight, mask, *optional))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Gradient of :func:`modulated_deform_conv_forward`, into the ``grad_`` tensors."""
    geometry = _geometry(sizes, MODULATED_SIZES)
    inputs = (input, offset, weight, mask, bias)
    buffers = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    used = 5 if with_bias else 4
    _write_gradients(
        lambda *tensors: _convolve(geometry, *tensors), inputs[:used], grad_output, buffers[:used]
    )


def _geometry(sizes: Mapping[str, int], names: Sequence[str]) -> Geometry:
    """Stride, padding and dilation, from mmcv's keywords."""
    rows, columns = ([sizes[name] for name in of_axis] for of_axis in (names[::2], names[1::2]))
    return list(zip(rows, columns, strict=True))


def _convolve(
    geometry: Geometry,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """torchvision's deformable convolution; geometry is stride, padding and dilation."""
    if mask is not None:
        size = [
            (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, pad, dilation in zip(
                input.shape[2:], weight.shape[2:], *geometry, strict=True
            )
        ]
        offset, mask = _as_read(offset, size), _as_read(mask, size)
    return torchvision.ops.deform_conv2d(
        wide(input),
        wide(offset),
        wide(weight),
        None if bias is None else wide(bias),
        *geometry,
        None if mask is None else wide(mask),
    )


def _as_read(x: Tensor, size: Sequence[int]) -> Tensor:
    """What mmcv's kernel reads from offsets or masks made for a larger map.

    It walks each image's numbers as if they were laid out for the output's size; mmdet's
    DyHead gives it a finer level's offsets and is trained with what comes of that.
    """
    if list(x.shape[2:]) == list(size):
        return x
    channels = x.shape[1]
    return x.flatten(1)[:, : channels * size[0] * size[1]].unflatten(1, (channels, *size))

"""RoIAlign as mmcv's ``_ext`` offers it, over torchvision's kernels."""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ltm_mm.compat.precision import wide

_AVERAGE = 1


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average-pool bilinear samples of each region, into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(K, 5)``, image index, x1 y1 x2 y2 in units of ``input / spatial_scale``.
        output: ``(K, C, aligned_height, aligned_width)``, written.
        argmax_y, argmax_x: for max pooling only, not used.
        sampling_ratio: samples per bin and axis; 0 takes as many as pixels.
        pool_mode: 1 (average).
        aligned: shift by half a pixel; without it regions are at least 1 x 1.

    Raises:
        NotImplementedError: for ``pool_mode`` 0 (max), which only compiled mmcv has.
    """
    if pool_mode != _AVERAGE:
        raise NotImplementedError(
            "RoIAlign(pool_mode='max') needs compiled mmcv: use pool_mode='avg' or run `make ops`"
        )
    output.copy_(
        torch.ops.torchvision.roi_align(
            wide(input),
            wide(rois),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward`, into ``grad_input`` ``(B, C, H, W)``."""
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            wide(grad_output),
            wide(rois),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )

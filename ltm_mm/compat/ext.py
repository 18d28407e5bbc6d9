"""The fallback for ``mmcv._ext``: executed under that name by the finder.

Its functions have the signatures that mmcv's op modules call: results are
written into tensors that the caller made. What is not supported here answers with
a function that raises, so that mmcv's op modules import and only the use of
such an op fails.
"""

from collections.abc import Callable
from typing import NoReturn

from mmengine.logging import print_log

from ltm_mm.compat.deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from ltm_mm.compat.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from ltm_mm.compat.nms import nms, softnms
from ltm_mm.compat.roi_align import roi_align_backward, roi_align_forward

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
    "softnms",
]


def get_compiler_version() -> str:
    """What mmcv's environment report prints as the compiler."""
    return "none (ltm_mm's fallback)"


def get_compiling_cuda_version() -> str:
    """What mmcv's environment report prints as the compiler's CUDA."""
    return "none (ltm_mm's fallback)"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):  # the import system probes for these
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's op {name!r} needs compiled mmcv, and ltm_mm's fallback does not have it: "
            "run `make ops` in ltm_mm's checkout, or install an mmcv wheel built for your torch"
        )

    return missing


print_log(
    "mmcv has no compiled ops here; ltm_mm provides NMS, RoIAlign, focal loss, deformable "
    "attention and convolution through PyTorch and torchvision (`make ops` builds mmcv's own)",
    logger="current",
)

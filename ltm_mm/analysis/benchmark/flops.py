"""Multiply-accumulates of a model, with what happens inside attention and merging.

The unit is the multiply-accumulate (MAC), which most of the literature calls FLOP: its
"4.5 GFLOPs" of Swin-T at 224 x 224 are MACs. PyTorch's counter, on which this stands,
counts a multiplication and an addition apart, so it says twice as many.

Seen is every matrix product and convolution that PyTorch runs, however it was written
(``@``, einsum, linear layers, fused attention). Not counted are element-wise work
(norms, softmax, activations, bias sums), sampling (RoIAlign, the sampling of deformable
attention) and the custom kernels of mmcv.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ...engine.build import evaluating
from .parts import PartMeter


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: of the whole pass.
        by_part: part of the network (see ``PARTS``) -> MACs; sums to ``total``.
        by_module: module's name -> MACs of its calls, with all that they call; '' is the
            model itself.
    """

    total: int
    by_part: Mapping[str, int]
    by_module: Mapping[str, int]


def count_macs(
    model: nn.Module, inputs: Tensor, forward: Callable[[], object] | None = None
) -> MacCount:
    """Count one forward pass, in eval mode and without gradients.

    Args:
        model: any module; put back in its mode afterwards.
        inputs: images ``(B, 3, H, W)``; all of a batch's work is counted.
        forward: runs the model once, for one that takes more than images; ``inputs``
            is not read then. Default: ``model(inputs)``.

    Returns:
        The MACs.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    meter = PartMeter(model, counter.get_total_flops)
    with evaluating(model), torch.no_grad(), counter, meter:
        model(inputs) if forward is None else forward()
    root = type(model).__name__
    by_module = {"": counter.get_total_flops() // 2}
    for name, flops in counter.get_flop_counts().items():
        if name.startswith(f"{root}."):
            by_module[name[len(root) + 1 :]] = sum(flops.values()) // 2
    by_part = {part: int(flops) // 2 for part, flops in meter.totals().items()}
    return MacCount(by_module[""], by_part, by_module)


def _sdpa(query: tuple, key: tuple, value: tuple, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(query, key, value)


def _mv(matrix: tuple, vector: tuple, *args: object, **kwargs: object) -> int:
    return 2 * matrix[0] * matrix[1]


# What the counter of PyTorch 2.11 misses: fused attention on the CPU, and two products.
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    torch.ops.aten.mv: _mv,
    torch.ops.aten.addmv: lambda bias, matrix, vector, **_: _mv(matrix, vector),
}

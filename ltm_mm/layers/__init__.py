"""Small modules that hold parameters and call ``ltm_mm.ops``."""

from .conv import ConvNormAct, fold_convs
from .fast_block import fast_attention, fast_mlp
from .linear import run_linear, run_mlp, untouched
from .window_attention import ShiftedWindowAttention, WindowAttention

__all__ = [
    "ConvNormAct",
    "ShiftedWindowAttention",
    "WindowAttention",
    "fast_attention",
    "fast_mlp",
    "fold_convs",
    "run_linear",
    "run_mlp",
    "untouched",
]

"""Small modules that hold parameters and call ``ltm_mm.ops``."""

from .conv import ConvNormAct, fold_convs
from .fast_block import fast_attention, fast_mlp
from .linear import run_linear, run_mlp
from .mask_module import MaskModule
from .token_merger import TokenMerger
from .window_attention import ShiftedWindowAttention, WindowAttention

__all__ = [
    "ConvNormAct",
    "MaskModule",
    "ShiftedWindowAttention",
    "TokenMerger",
    "WindowAttention",
    "fast_attention",
    "fast_mlp",
    "fold_convs",
    "run_linear",
    "run_mlp",
]

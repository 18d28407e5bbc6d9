"""Small modules that hold parameters and call ``ltm_mm.ops``."""

from .fast_block import fast_attention, fast_mlp
from .linear import run_linear, run_mlp
from .mask_module import MaskModule
from .token_merger import TokenMerger
from .window_attention import ShiftedWindowAttention, WindowAttention

__all__ = [
    "MaskModule",
    "ShiftedWindowAttention",
    "TokenMerger",
    "WindowAttention",
    "fast_attention",
    "fast_mlp",
    "run_linear",
    "run_mlp",
]

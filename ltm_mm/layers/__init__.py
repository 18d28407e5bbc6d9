"""Small modules that hold parameters and call ``ltm_mm.ops``."""

from .linear import run_linear, run_mlp
from .mask_module import MaskModule
from .token_merger import TokenMerger
from .window_attention import ShiftedWindowAttention, WindowAttention

__all__ = [
    "MaskModule",
    "ShiftedWindowAttention",
    "TokenMerger",
    "WindowAttention",
    "run_linear",
    "run_mlp",
]

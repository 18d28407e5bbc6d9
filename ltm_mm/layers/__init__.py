"""Small modules that hold parameters and call ``ltm_mm.ops``."""

from .conv import ConvNormAct, fold_convs
from .fast_block import fast_attention, fast_mlp
from .linear import calm, hooked, run_linear, run_mlp, untouched
from .swin_block import SwinView, cosine
from .window_attention import ShiftedWindowAttention, WindowAttention
from .window_view import Where, WindowAttentionView

__all__ = [
    "ConvNormAct",
    "ShiftedWindowAttention",
    "SwinView",
    "Where",
    "WindowAttention",
    "WindowAttentionView",
    "calm",
    "cosine",
    "fast_attention",
    "fast_mlp",
    "fold_convs",
    "hooked",
    "run_linear",
    "run_mlp",
    "untouched",
]

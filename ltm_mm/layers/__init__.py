"""Small modules that hold parameters, and views of other libraries' modules."""

from .fast_block import fast_attention, fast_mlp
from .swin_block import SwinView, cosine
from .window_attention import ShiftedWindowAttention, WindowAttention
from .window_view import Where, WindowAttentionView

__all__ = [
    "ShiftedWindowAttention",
    "SwinView",
    "Where",
    "WindowAttention",
    "WindowAttentionView",
    "cosine",
    "fast_attention",
    "fast_mlp",
]

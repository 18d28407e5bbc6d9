"""Small modules that hold parameters, and views of other libraries' modules."""

from .cpu_attention_mlp import fast_attention, fast_mlp
from .swin_block import SwinView
from .window_attention import (
    ShiftedWindowAttention,
    WindowAttention,
    WindowContext,
    attend,
    concat_linears,
    scaled_cosine,
)

__all__ = [
    "ShiftedWindowAttention",
    "SwinView",
    "WindowAttention",
    "WindowContext",
    "attend",
    "concat_linears",
    "fast_attention",
    "fast_mlp",
    "scaled_cosine",
]

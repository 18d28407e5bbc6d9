"""Pure tensor functions of token merging: no modules, no parameters, no mm* import."""

from .attention import window_attention
from .linear import CHUNK, add_by_rows, linear, served
from .masks import hat_prior, merge_masks
from .merge import (
    Merge,
    merge,
    merge_grid,
    merge_keeping_norm,
    unmerge,
    unmerge_grid,
    window_mass,
)
from .mlp import mlp
from .relative_position import offset_interpolation, relative_position_index
from .shift import shift_masks, window_kinds
from .windows import (
    BAND,
    bands,
    crop,
    from_windows,
    joined,
    pad_to_windows,
    real_tokens,
    to_windows,
)

__all__ = [
    "BAND",
    "CHUNK",
    "Merge",
    "add_by_rows",
    "bands",
    "crop",
    "from_windows",
    "hat_prior",
    "joined",
    "linear",
    "merge",
    "merge_grid",
    "merge_keeping_norm",
    "merge_masks",
    "mlp",
    "offset_interpolation",
    "pad_to_windows",
    "real_tokens",
    "relative_position_index",
    "served",
    "shift_masks",
    "to_windows",
    "unmerge",
    "unmerge_grid",
    "window_attention",
    "window_kinds",
    "window_mass",
]

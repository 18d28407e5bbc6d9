"""Pure tensor functions of token merging: no modules, no parameters, no mm* import."""

from .attention import window_attention
from .linear import CHUNK, add_by_rows, linear, served
from .masks import back_mask, hat_prior, merge_mask
from .merge import (
    Merge,
    keep_norm,
    merge,
    slot_grid,
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
    "back_mask",
    "bands",
    "crop",
    "from_windows",
    "hat_prior",
    "joined",
    "keep_norm",
    "linear",
    "merge",
    "merge_mask",
    "mlp",
    "offset_interpolation",
    "pad_to_windows",
    "real_tokens",
    "relative_position_index",
    "served",
    "shift_masks",
    "slot_grid",
    "to_windows",
    "unmerge",
    "unmerge_grid",
    "window_attention",
    "window_kinds",
    "window_mass",
]

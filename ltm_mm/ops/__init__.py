"""Pure tensor functions of token merging: no modules, no parameters, no mm* import."""

from .attention import fused_attention
from .graphs import exporting, first_largest, is_empty, largest, transformed
from .groups import by_index, flat_index, full_precision, sum_groups, take_groups
from .relative_position import pair_offsets, relative_position_index
from .shift import BLOCKED, shift_indices, shift_masks, window_regions
from .shifted import ShiftedWindows
from .tables import cached_by_size
from .windows import (
    crop,
    from_windows,
    packed,
    pad_to_windows,
    real_tokens,
    to_windows,
)

__all__ = [
    "BLOCKED",
    "ShiftedWindows",
    "by_index",
    "cached_by_size",
    "crop",
    "exporting",
    "first_largest",
    "flat_index",
    "from_windows",
    "full_precision",
    "fused_attention",
    "is_empty",
    "largest",
    "packed",
    "pad_to_windows",
    "pair_offsets",
    "real_tokens",
    "relative_position_index",
    "shift_indices",
    "shift_masks",
    "sum_groups",
    "take_groups",
    "to_windows",
    "transformed",
    "window_regions",
]

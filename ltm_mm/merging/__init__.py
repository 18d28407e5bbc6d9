"""Token merging: masks, and a transformer block on merged tokens. No mm* import, no kernel."""

from .blocks import MaskModule, MergeScope, MergingBlock, grow_details, merges, merging_blocks
from .detail import Detail
from .formula import unmerge_update
from .groups import Groups
from .masks import Match, WindowMask, build_mask
from .matching import match, rounds
from .record import ChainMerge, Merge, WindowMerge, has_listeners, notify_merge, record_merges

__all__ = [
    "ChainMerge",
    "Detail",
    "Groups",
    "MaskModule",
    "Match",
    "Merge",
    "MergeScope",
    "MergingBlock",
    "WindowMask",
    "WindowMerge",
    "build_mask",
    "grow_details",
    "has_listeners",
    "match",
    "merges",
    "merging_blocks",
    "notify_merge",
    "record_merges",
    "rounds",
    "unmerge_update",
]

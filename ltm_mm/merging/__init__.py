"""Token merging: masks, and a transformer block on merged tokens. No mm* import, no kernel."""

from .groups import Groups, Mask, SoftGroups, merged_block
from .masks import MASKS, Match, Soft, WeightedMatch, build_mask
from .matching import match, rounds
from .record import ChainMerge, Merge, WindowMerge, record_merges, recording, tell

__all__ = [
    "MASKS",
    "ChainMerge",
    "Groups",
    "Mask",
    "Match",
    "Merge",
    "Soft",
    "SoftGroups",
    "WeightedMatch",
    "WindowMerge",
    "build_mask",
    "match",
    "merged_block",
    "record_merges",
    "recording",
    "rounds",
    "tell",
]

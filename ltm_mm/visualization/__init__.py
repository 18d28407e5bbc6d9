"""Pictures of what merging does: merge maps, and predictions side by side.

Needs matplotlib, which mmengine brings.
"""

from ..engine.build import plain_model, plain_twin, share_weights
from ..engine.predictions import Instances, predict, read_prediction
from .comparison import comparison_figure
from .figures import pixels_of, save
from .hook import MergePicturesHook
from .merge_map import BlockGroups, View, choose_blocks, draw_merge_map, merge_groups_of
from .merge_visualizer import ImageComparison, MergeVisualizer
from .panels import Scene, merge_map_figure, shared_figure
from .predictions import match_instances
from .run import build_pair, visualize

__all__ = [
    "BlockGroups",
    "ImageComparison",
    "Instances",
    "MergePicturesHook",
    "MergeVisualizer",
    "Scene",
    "View",
    "build_pair",
    "choose_blocks",
    "comparison_figure",
    "draw_merge_map",
    "match_instances",
    "merge_groups_of",
    "merge_map_figure",
    "pixels_of",
    "plain_model",
    "plain_twin",
    "predict",
    "read_prediction",
    "save",
    "share_weights",
    "shared_figure",
    "visualize",
]

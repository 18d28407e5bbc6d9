"""Pictures of what merging does: merge maps, merge weights, predictions side by side.

Needs matplotlib, which mmengine brings.
"""

from .artist import Artist, Look
from .comparison import comparison_figure
from .figures import pixels_of, save
from .hook import MergePicturesHook
from .merge_map import StageMasks, View, draw_merge_map, merge_masks_of, record_merges
from .panels import Scene, departure_figure, merge_map_figure, weights_figure
from .predictions import Instances, compare, predict, read_prediction
from .run import build_pair, plain_model, plain_twin, share_weights, visualize

__all__ = [
    "Artist",
    "Instances",
    "Look",
    "MergePicturesHook",
    "Scene",
    "StageMasks",
    "View",
    "build_pair",
    "compare",
    "comparison_figure",
    "departure_figure",
    "draw_merge_map",
    "merge_map_figure",
    "merge_masks_of",
    "pixels_of",
    "plain_model",
    "plain_twin",
    "predict",
    "read_prediction",
    "record_merges",
    "save",
    "share_weights",
    "visualize",
    "weights_figure",
]

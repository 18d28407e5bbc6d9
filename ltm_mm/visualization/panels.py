"""What merging did to an image: merge maps, merge weights, departure from the prior (ours)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from .figures import (
    DPI,
    HEAT,
    TEXT,
    caption,
    column_width,
    enlarged,
    heading,
    heat_over,
    panels,
    show,
)
from .merge_map import Box, Pixels, StageMasks, View, draw_merge_map, outlines, slot_side

ZOOM_SLOTS = 30  # slots of the finest stage across the zoomed crop
MIN_BORDER = 8  # pixels of the figure that a slot's side has at least for borders to be drawn


@dataclass
class Scene:
    """An image and what merging did to it.

    Attributes:
        image: ``(H, W, 3)``, RGB.
        view: how it lies in the network's input.
        stages: the masks of its merging stages, at least one.
        caption: a line about model and weights.
    """

    image: Pixels
    view: View
    stages: Sequence[StageMasks]
    caption: str = ""

    @property
    def aspect(self) -> float:
        """Height over width of the image."""
        return self.view.image[0] / self.view.image[1]


def merge_map_figure(scene: Scene) -> Figure:
    """The image and every stage's merge map; below, the crop with most detail, enlarged."""
    crop = busiest_crop(scene)
    whole = (0, 0, *scene.view.image)
    boxes = [whole] if crop == whole else [whole, crop]
    columns = len(scene.stages) + 1
    figure, axes = panels(len(boxes), columns, scene.aspect, extra=0.8 + 0.1 * len(boxes))
    for row, (y0, x0, y1, x1) in zip(axes, boxes, strict=True):
        show(row[0], scene.image[y0:y1, x0:x1])
        # As many pixels as the panel has, so that borders are thin and lie on mask edges.
        panel = column_width(columns) * DPI
        scale = max(1, round(2 * panel / (x1 - x0)))
        for axis, stage in zip(row[1:], scene.stages, strict=True):
            side = slot_side(stage, scene.view) * panel / (x1 - x0)
            borders, box = side >= MIN_BORDER, (y0, x0, y1, x1)
            show(axis, draw_merge_map(scene.image, stage, scene.view, scale, borders, box))
    for axis, stage in zip(axes[0, 1:], scene.stages, strict=True):
        heading(axis, stage_title(stage))
    heading(axes[0, 0], "image" if crop == whole else "image\n(framed: the crop below)")
    if crop != whole:
        _frame(axes[0, 0], crop)
    caption(figure, f"{scene.caption}{mask_note(scene.stages)}")
    return figure


def _frame(axis: Axes, box: Box) -> None:
    """Outline a part of an image, visible on any ground."""
    y0, x0, y1, x1 = box
    corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0, y1 - y0)
    for colour, width in (("black", 2.6), ("white", 1.2)):
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width))


def weights_figure(scene: Scene, points: Sequence[tuple[int, int]]) -> Figure:
    """What a slot is made of: one row per stage, one column per point of the image.

    Args:
        scene: the image and its masks.
        points: (x, y) in pixels of the image. Shown is the slot that the pixel belongs to:
            the share of each token in it, and its outline in the merge map.
    """
    figure, axes = panels(len(scene.stages), len(points), 1, extra=0.5 + 0.25 * len(scene.stages))
    for row, stage in enumerate(scene.stages):
        for column, point in enumerate(points):
            _weights(axes[row, column], scene, stage, point, column_width(len(points)) * DPI)
        axes[row, 0].set_ylabel(stage_title(stage), fontsize=10, color=TEXT)
    for axis, (x, y) in zip(axes[0], points, strict=True):
        heading(axis, f"slot at x={x}, y={y}\n{axis.get_title()}")
    caption(
        figure,
        "share of each token in one slot (a column of G), dark blue: little, yellow: most; "
        "white: the slot in the merge map",
    )
    return figure


def _weights(
    axis: Axes, scene: Scene, stage: StageMasks, point: tuple[int, int], panel: float
) -> None:
    """One slot's weights over a grey crop of twice its window's size; ``panel`` in pixels."""
    x, y = point
    slot = int(scene.view.enlarge(stage.slot_map(), stage.stride, box=(y, x, y + 1, x + 1))[0, 0])
    weights = stage.weights(slot)
    y0, x0, y1, x1 = crop = _around(scene.view, point, 2 * stage.window * stage.stride)
    scale = max(1, round(panel / (x1 - x0)))
    grey = scene.image[y0:y1, x0:x1].mean(-1, keepdims=True).repeat(3, -1)
    share = scene.view.enlarge(weights / weights.max(), stage.stride, scale, crop)
    drawn = heat_over(enlarged(grey * 0.7 + 255 * 0.3, scale).astype(np.uint8), share)
    inside = scene.view.enlarge(stage.slot_map(), stage.stride, scale, crop) == slot
    drawn[outlines(inside)] = 255
    show(axis, drawn)
    heading(axis, f"most from one token: {weights.max():.0%}")


def departure_figure(scene: Scene) -> Figure:
    """How far each token's mask is from the spatial prior, one column per stage."""
    figure, axes = panels(1, len(scene.stages), scene.aspect, extra=1.1)
    maps = [stage.departure() for stage in scene.stages]
    top = max(0.05, *(float(np.quantile(m, 0.995)) for m in maps))
    for axis, stage, values in zip(axes[0], scene.stages, maps, strict=True):
        shown = scene.view.enlarge(values, stage.stride)
        drawn = axis.imshow(shown, cmap=HEAT, vmin=0, vmax=top)
        heading(axis, f"{stage_title(stage)}\nmean {values.mean():.3f}")
    bar = figure.colorbar(drawn, ax=list(axes[0]), shrink=0.9, pad=0.01)
    bar.set_label("total variation (0 to 1)", fontsize=10, color=TEXT)
    caption(figure, f"departure of the mask U from the spatial prior{mask_note(scene.stages)}")
    return figure


def stage_title(stage: StageMasks) -> str:
    """``stages.2, stride 16`` and ``7×7 → 5×5 slots per window``."""
    name = ".".join(stage.name.split(".")[-2:])
    sides = " → ".join(f"{side}×{side}" for side in (stage.window, *stage.counts))
    return f"{name}, stride {stage.stride}\nwindow {sides}"


def mask_note(stages: Sequence[StageMasks]) -> str:
    """Says so where no mask was trained."""
    if any(stage.trained for stage in stages):
        return ""
    return " · masks untrained: spatial prior and similarity of tokens alone"


def busiest_crop(scene: Scene) -> Box:
    """The crop with most detail whose longer side holds some slots of the finest stage."""
    side = ZOOM_SLOTS * min(slot_side(stage, scene.view) for stage in scene.stages)
    height, width = scene.view.image
    h = min(height, round(side * min(1.0, scene.aspect)) + 1)
    w = min(width, round(side * min(1.0, 1 / scene.aspect)) + 1)
    grey = scene.image.astype(np.float64).mean(-1)
    detail = np.zeros_like(grey)
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    detail[1:] += np.abs(np.diff(grey, axis=0))
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # summed-area table
    sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    y, x = np.unravel_index(sums.argmax(), sums.shape)
    return int(y), int(x), int(y) + h, int(x) + w


def detailed_points(image: Pixels, count: int = 4) -> list[tuple[int, int]]:
    """Points (x, y) that lie on detail, one in each of ``count`` upright strips of the image."""
    height, width = image.shape[:2]
    grey = image.astype(np.float64).mean(-1)
    detail: NDArray = np.abs(np.gradient(grey)[0]) + np.abs(np.gradient(grey)[1])
    margin = height // 6
    points = []
    for k in range(count):
        left, right = k * width // count, max((k + 1) * width // count, k * width // count + 1)
        strip = detail[margin : height - margin, left:right]
        y, x = np.unravel_index(strip.argmax(), strip.shape)
        points.append((int(x) + left, int(y) + margin))
    return points


def _around(view: View, point: tuple[int, int], side: float) -> Box:
    """A square crop around a point, ``side`` pixels of the network's input wide."""
    height, width = view.image
    shrink = max(image / seen for image, seen in zip(view.image, view.resized, strict=True))
    side = max(8, round(side * shrink))
    x, y = point
    y0 = max(0, min(y - side // 2, height - side))
    x0 = max(0, min(x - side // 2, width - side))
    return y0, x0, min(height, y0 + side), min(width, x0 + side)

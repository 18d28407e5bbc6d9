"""What merging did to an image: merge maps, and which pixels share a token with some."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from .figures import DPI, TEXT, caption, column_width, enlarged, heading, panels, rgb, show
from .merge_map import (
    BlockGroups,
    Box,
    Pixels,
    View,
    draw_merge_map,
    draw_outlines,
    group_side,
    outlines,
)

ZOOM_GROUPS = 30  # average groups of the finest map across the zoomed crop
MIN_BORDER = 8  # pixels of the figure that a group's side has at least for borders to be drawn
MARK = "#E69F00"


@dataclass
class Scene:
    """An image and what merging did to it.

    Attributes:
        image: ``(H, W, 3)``, RGB.
        view: how it lies in the network's input.
        blocks: the groups of some merging blocks, at least one.
        caption: a line about model and weights.
    """

    image: Pixels
    view: View
    blocks: Sequence[BlockGroups]
    caption: str = ""

    @property
    def aspect(self) -> float:
        """Height over width of the image."""
        return self.view.image[0] / self.view.image[1]


def merge_map_figure(scene: Scene) -> Figure:
    """The image and every block's merge map; below, the crop with most detail, enlarged."""
    crop = busiest_crop(scene)
    whole = (0, 0, *scene.view.image)
    boxes = [whole] if crop == whole else [whole, crop]
    columns = len(scene.blocks) + 1
    figure, axes = panels(len(boxes), columns, scene.aspect, extra=0.8 + 0.1 * len(boxes))
    for row, (y0, x0, y1, x1) in zip(axes, boxes, strict=True):
        show(row[0], scene.image[y0:y1, x0:x1])
        # As many pixels as the panel has, so that borders are thin and lie on tokens' edges.
        panel = column_width(columns) * DPI
        scale = max(1, round(2 * panel / (x1 - x0)))
        for axis, block in zip(row[1:], scene.blocks, strict=True):
            side = group_side(block, scene.view) * panel / (x1 - x0)
            borders, box = side >= MIN_BORDER, (y0, x0, y1, x1)
            show(axis, draw_merge_map(scene.image, block, scene.view, scale, borders, box))
    for axis, block in zip(axes[0, 1:], scene.blocks, strict=True):
        heading(axis, block_title(block))
    heading(axes[0, 0], "image" if crop == whole else "image\n(framed: the crop below)")
    if crop != whole:
        frame(axes[0, 0], crop)
    caption(figure, scene.caption)
    return figure


def frame(axis: Axes, box: Box) -> None:
    """Outline a part of an image, visible on any ground."""
    y0, x0, y1, x1 = box
    corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0, y1 - y0)
    for colour, width in (("black", 2.6), ("white", 1.2)):
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width))


def shared_figure(scene: Scene, points: Sequence[tuple[int, int]]) -> Figure:
    """Which pixels share a merged token with some: one row per block, one column per point.

    Args:
        scene: the image and its groups.
        points: (x, y) in pixels of the image.
    """
    figure, axes = panels(len(scene.blocks), len(points), 1, extra=0.5 + 0.25 * len(scene.blocks))
    for row, block in zip(axes, scene.blocks, strict=True):
        for axis, point in zip(row, points, strict=True):
            _shared(axis, scene, block, point, column_width(len(points)) * DPI)
        row[0].set_ylabel(block_title(block), fontsize=10, color=TEXT)
    for axis, (x, y) in zip(axes[0], points, strict=True):
        heading(axis, f"x={x}, y={y}\n{axis.get_title()}")
    caption(figure, "orange: the tokens that share a merged token with the pixel")
    return figure


def _shared(
    axis: Axes, scene: Scene, block: BlockGroups, point: tuple[int, int], panel: float
) -> None:
    """A pixel's group over a grey crop around it; ``panel`` in pixels."""
    x, y = point
    numbers = scene.view.enlarge(block.groups, block.stride)
    group = numbers[y, x]
    y0, x0, y1, x1 = box = _square_around(
        numbers == group, round(8 * group_side(block, scene.view))
    )
    scale = max(1, round(panel / (x1 - x0)))
    grey = scene.image[y0:y1, x0:x1].mean(-1, keepdims=True).repeat(3, -1)
    drawn = enlarged(grey.astype(np.uint8), scale)
    labels = scene.view.enlarge(block.groups, block.stride, scale, box)
    drawn[labels == group] = drawn[labels == group] * 0.4 + rgb(MARK) * 0.6
    show(axis, draw_outlines(drawn, outlines(labels)))
    count = np.count_nonzero(block.groups == group)
    heading(axis, f"{count} token{'s' * (count > 1)}")


def block_title(block: BlockGroups) -> str:
    """``stages.2.blocks.5, stride 16`` and ``kept 400 of 784 tokens``."""
    kept, tokens = block.kept
    return f"{block.name}, stride {block.stride}\nkept {kept} of {tokens} tokens"


def busiest_crop(scene: Scene) -> Box:
    """The crop with most detail whose longer side holds some groups of the finest map."""
    side = ZOOM_GROUPS * min(group_side(block, scene.view) for block in scene.blocks)
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
    wide = np.pad(grey, [(0, int(side == 1)) for side in grey.shape], "edge")
    detail: NDArray = (np.abs(np.gradient(wide)[0]) + np.abs(np.gradient(wide)[1]))[:height, :width]
    margin = height // 6
    points = []
    for k in range(count):
        left, right = k * width // count, max((k + 1) * width // count, k * width // count + 1)
        strip = detail[margin : height - margin, left:right]
        y, x = np.unravel_index(strip.argmax(), strip.shape)
        points.append((int(x) + left, int(y) + margin))
    return points


def _square_around(inside: NDArray, least: int) -> Box:
    """A square around some pixels ``(H, W)``, ``least`` pixels wide if the image is."""
    spans = []
    for axis in (1, 0):
        inside_at = np.flatnonzero(inside.any(axis))
        spans.append((int(inside_at[0]), int(inside_at[-1]) + 1))
    side = max(least, *(stop - start for start, stop in spans))
    starts = [
        max(0, min((start + stop - side) // 2, size - side))
        for (start, stop), size in zip(spans, inside.shape, strict=True)
    ]
    (y, x), (height, width) = starts, inside.shape
    return y, x, min(height, y + side), min(width, x + side)

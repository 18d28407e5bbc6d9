"""Predictions of the plain and the merging model side by side, differences marked."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ..engine.predictions import Instances, Prediction
from .figures import CLASSES, TEXT, caption, heading, panels, rgb, show
from .merge_map import Pixels, outlines
from .predictions import class_name, match_instances

# Told apart by line style and sign, too.
LOST, NEW, SAME = "#D55E00", "#0072B2", "#767676"
MAX_LEGEND = 8  # classes named below a label map
MIN_NAMED = 0.004  # share of the image that a region has at least for its name to be written


def comparison_figure(
    image: Pixels,
    plain: Prediction,
    merged: Prediction,
    classes: Sequence[str] | None = None,
    note: str = "",
) -> Figure:
    """What the plain model predicts, what the merging one does, and the differences.

    Args:
        image: ``(H, W, 3)``, RGB.
        plain, merged: instances or label maps, both of one kind, at the image's size.
        classes: names of the classes.
        note: a line about model and weights.
    """
    aspect = image.shape[0] / image.shape[1]
    figure, axes = panels(1, 3, aspect, extra=0.95)
    colours = class_colours([plain, merged], classes)
    for axis, prediction, name in zip(axes[0], (plain, merged), ("plain", "merged"), strict=False):
        draw_prediction(axis, image, prediction, colours, classes)
        count = f": {len(prediction)} objects" if isinstance(prediction, Instances) else ""
        heading(axis, f"{name}{count}")
    heading(axes[0, 2], draw_differences(axes[0, 2], image, plain, merged, classes))
    if isinstance(plain, Instances):
        _legend(axes[0, 2])
        caption(figure, note)
    else:
        _class_legend(figure, colours, classes, note)
    return figure


def draw_prediction(
    axis: Axes,
    image: Pixels,
    prediction: Prediction,
    colours: dict[int, str],
    classes: Sequence[str] | None,
) -> None:
    """Instances or a label map over an image."""
    if isinstance(prediction, Instances):
        draw_instances(axis, image, prediction, classes)
    else:
        draw_label_map(axis, image, prediction, colours, classes)


def draw_differences(
    axis: Axes,
    image: Pixels,
    plain: Prediction,
    merged: Prediction,
    classes: Sequence[str] | None,
) -> str:
    """Mark what the two models do not agree on; returns how much that is, in words."""
    if isinstance(plain, Instances) and isinstance(merged, Instances):
        return _instance_differences(axis, image, plain, merged, classes)
    assert isinstance(plain, np.ndarray)
    assert isinstance(merged, np.ndarray)
    return _label_differences(axis, image, plain, merged)


def draw_instances(
    axis: Axes, image: Pixels, instances: Instances, classes: Sequence[str] | None
) -> None:
    """Boxes, masks, class names and scores over an image."""
    drawn = image.copy()
    for k in reversed(range(len(instances))):  # the best ones on top
        if instances.masks is not None:
            mask, tint = instances.masks[k], rgb(_colour(instances.labels[k]))
            drawn[mask] = (drawn[mask] * 0.5 + tint * 0.5).astype(np.uint8)
            drawn[mask & (outlines(mask))] = tint
    show(axis, drawn)
    for k in reversed(range(len(instances))):
        colour = _colour(instances.labels[k])
        name = class_name(classes, int(instances.labels[k]))
        _box(axis, instances.boxes[k], colour, f"{name} {instances.scores[k]:.2f}")


def draw_label_map(
    axis: Axes,
    image: Pixels,
    labels: NDArray,
    colours: dict[int, str],
    classes: Sequence[str] | None,
) -> None:
    """A label map over an image, with the names of its larger classes written in.

    Classes without a colour, which the background is, show the image.
    """
    mixed = image.astype(np.float32)
    for label, colour in colours.items():
        region = labels == label
        mixed[region] = mixed[region] * np.float32(0.4) + rgb(colour) * np.float32(0.6)
    drawn = mixed.astype(np.uint8)
    drawn[outlines(labels)] = 255
    show(axis, drawn)
    for label in colours:
        region = labels == label
        if region.mean() >= MIN_NAMED:
            x, y = _innermost_point(region)
            # Names at the edges are written inwards.
            across, down = x / region.shape[1], y / region.shape[0]
            ha = "left" if across < 0.15 else "right" if across > 0.85 else "center"
            va = "top" if down < 0.05 else "bottom" if down > 0.95 else "center"
            _write(axis, (x, y), class_name(classes, label), ha=ha, va=va)


def class_colours(
    predictions: Sequence[Prediction], classes: Sequence[str] | None
) -> dict[int, str]:
    """Class -> colour of the classes in some label maps, the largest first; without background.

    Where the palette suffices for all classes, a class has one colour in all pictures;
    otherwise the largest ones of these maps are distinguished.
    """
    maps = [m for m in predictions if isinstance(m, np.ndarray)]
    if not maps:
        return {}
    labels, counts = np.unique(np.stack(maps), return_counts=True)
    order = [int(labels[k]) for k in np.argsort(-counts, kind="stable")]
    order = [label for label in order if class_name(classes, label) != "background"]
    fixed = classes is not None and len(classes) <= len(CLASSES)
    return {c: CLASSES[(c if fixed else k) % len(CLASSES)] for k, c in enumerate(order)}


def _instance_differences(
    axis: Axes,
    image: Pixels,
    plain: Instances,
    merged: Instances,
    classes: Sequence[str] | None,
) -> str:
    """Objects that one of the models has alone, and where the masks of the others differ."""
    drawn = _faded(image)
    difference = match_instances(plain, merged)
    for mine, other in difference.both:
        if plain.masks is not None and merged.masks is not None:
            drawn[plain.masks[mine] & ~merged.masks[other]] = rgb(LOST)
            drawn[merged.masks[other] & ~plain.masks[mine]] = rgb(NEW)
    show(axis, drawn)
    for _, index in difference.both:
        _box(axis, merged.boxes[index], SAME)
    for index in difference.lost:
        name = class_name(classes, int(plain.labels[index]))
        _box(axis, plain.boxes[index], LOST, f"− {name}", linestyle=(0, (4, 2)))
    for index in difference.new:
        name = class_name(classes, int(merged.labels[index]))
        _box(axis, merged.boxes[index], NEW, f"+ {name}")
    return (
        f"{len(difference.both)} alike, {len(difference.lost)} only plain, "
        f"{len(difference.new)} only merged"
    )


def _label_differences(axis: Axes, image: Pixels, plain: NDArray, merged: NDArray) -> str:
    """Pixels whose class the two models do not agree on."""
    drawn = _faded(image)
    differ = plain != merged
    drawn[differ] = rgb(LOST)
    show(axis, drawn)
    return f"{differ.mean():.2%} of the pixels differ"


def _class_legend(
    figure: Figure, colours: dict[int, str], classes: Sequence[str] | None, note: str
) -> None:
    """A line of text and the colours of the largest classes, below the panels."""
    shown = list(colours.items())[:MAX_LEGEND]
    handles = [Patch(facecolor=c, label=class_name(classes, label)) for label, c in shown]
    if len(colours) > len(shown):
        handles.append(Patch(facecolor="none", label=f"and {len(colours) - len(shown)} more"))
    legend = figure.legend(
        handles=handles,
        title=note,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=10,
        title_fontsize=10,
        frameon=False,
    )
    legend.get_title().set_color(TEXT)


def _legend(axis: Axes) -> None:
    """What the colours of the differences mean."""
    handles = [
        Patch(facecolor=LOST, label="− only in plain"),
        Patch(facecolor=NEW, label="+ only in merged"),
    ]
    axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=len(handles),
        fontsize=10,
        frameon=False,
    )


def _box(axis: Axes, box: NDArray, colour: str, text: str = "", linestyle: object = "-") -> None:
    """A box; its text inside the picture at its upper left corner."""
    x0, y0, x1, y1 = box
    # Corners of a box are edges of pixels, and the first pixel reaches from -0.5 to 0.5.
    corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0, y1 - y0)
    width = 1.6 if text else 1.0
    axis.add_patch(
        Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width, linestyle=linestyle)
    )
    if text:
        _write(axis, (max(x0, 0), max(y0, 0)), text, ha="left", va="top", colour=colour)


def _write(
    axis: Axes, place: tuple[float, float], text: str, ha: str, va: str, colour: str = TEXT
) -> None:
    """A word on a picture, legible on any ground."""
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    axis.text(
        *place, text, ha=ha, va=va, fontsize=8.5, color=colour, path_effects=halo, clip_on=True
    )


def _innermost_point(region: NDArray) -> tuple[float, float]:
    """The point (x, y) of a region that is farthest from its edge."""
    padded = np.pad(region.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return float(x - 1), float(y - 1)


def _faded(image: Pixels) -> Pixels:
    """A pale grey copy that marks stand out from."""
    grey = image.mean(-1, keepdims=True).repeat(3, -1)
    return (grey * 0.6 + 255 * 0.4).astype(np.uint8)


def _colour(label: int) -> str:
    return CLASSES[int(label) % len(CLASSES)]

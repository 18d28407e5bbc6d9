"""Figures: their grid of panels, their lettering, and how they are written."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from .merge_map import Pixels

# Okabe & Ito's colours for all kinds of colour vision, without black, then Tol's muted ones.
CLASSES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#882255", "#44AA99", "#DDCC77", "#332288", "#999933", "#AA4499", "#88CCEE",
)  # fmt: skip
TEXT = "#222222"
DPI = 150
WIDTH, COLUMN = 12.0, 5.0  # inches: of a figure; of a column at most


def rgb(colour: str) -> NDArray[np.uint8]:
    """A colour's three bytes."""
    return (np.array(colors.to_rgb(colour)) * 255).round().astype(np.uint8)


def column_width(columns: int) -> float:
    """Inches of each of a figure's columns; lettering stays legible at a README's width."""
    return min(COLUMN, WIDTH / columns)


def panels(rows: int, columns: int, aspect: float, extra: float = 0.8) -> tuple[Figure, NDArray]:
    """A figure with a grid of bare panels.

    Args:
        rows, columns: of the grid.
        aspect: height over width of what the panels show.
        extra: inches of height for titles, legend and caption together.

    Returns:
        The figure and its axes ``(rows, columns)``.
    """
    width = column_width(columns)
    height = width * float(np.clip(aspect, 0.3, 2.0))
    size = (width * columns, height * rows + extra)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.03, h_pad=0.06, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def show(axis: Axes, image: Pixels) -> None:
    """An image in a panel: pixel for pixel where it is enlarged, smoothed where shrunk."""
    axis.imshow(image, interpolation="antialiased")


def heading(axis: Axes, text: str) -> None:
    """A panel's title."""
    axis.set_title(text, fontsize=10, color=TEXT, linespacing=1.25)


def caption(figure: Figure, text: str) -> None:
    """The line below all panels."""
    letters = int(figure.get_figwidth() * 12)
    figure.supxlabel(textwrap.fill(text, letters), fontsize=10, color=TEXT)


def enlarged(image: Pixels, scale: int) -> Pixels:
    """Every pixel ``scale`` times as wide and high."""
    return image.repeat(scale, 0).repeat(scale, 1)


def pixels_of(figure: Figure) -> Pixels:
    """A figure as an image ``(H, W, 3)``, for a logger or a page."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(dpi)
    Image.fromarray(pixels_of(figure)).save(path, optimize=True)
    return path

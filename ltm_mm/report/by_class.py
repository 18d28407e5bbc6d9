"""What a test found per class, for the page: a table, precision over recall, confusions."""

import numpy as np
from matplotlib.figure import Figure

from ..visualization.figures import CLASSES, TEXT
from .curves import STYLES, svg_of

KINDS = {"bbox": "box", "segm": "mask"}
MAX_LINES = 7  # classes with a curve of their own
MAX_NUMBERS = 15  # classes up to which confusions are written as numbers, too
MAX_CLASSES = 100  # with more a picture of confusions shows nothing


def class_table(found: dict) -> list[list[str]]:
    """Rows of cells, their head first; nothing where there is nothing per class."""
    if not found.get("classes"):
        return []
    columns: dict[str, list] = {}
    if found["task"] == "detection":
        columns["objects"] = found["objects"]
        for kind in found["ap"]:
            columns[f"{KINDS.get(kind, kind)} AP"] = found["ap"][kind]
            columns[f"{KINDS.get(kind, kind)} AP50"] = found["ap50"][kind]
        digits = 3
    else:
        columns |= {"IoU, %": found["iou"], "accuracy, %": found["accuracy"]}
        digits = 1
    rows = [["class", *columns]]
    for k, name in enumerate(found["classes"]):
        values = [column[k] for column in columns.values()]
        rows.append([name, *(_cell(value, digits) for value in values)])
    return rows


def precision_curve(found: dict) -> str | None:
    """SVG of precision over recall at IoU 0.5, of the mean and of some classes."""
    kind = next(iter(found.get("precision") or {}), None)
    if kind is None:
        return None
    curves = {
        name: values
        for name, values in zip(found["classes"], found["precision"][kind], strict=True)
        if values
    }
    if not curves:
        return None
    figure = Figure(figsize=(7, 3.8), layout="constrained", facecolor="white")
    axis = figure.subplots()
    if len(curves) <= MAX_LINES:
        for k, (name, values) in enumerate(curves.items()):
            style = STYLES[k % len(STYLES)]
            axis.plot(found["recall"], values, style, color=CLASSES[k], label=name, linewidth=1.6)
    if len(curves) > 1:
        mean = np.mean(list(curves.values()), axis=0)
        axis.plot(found["recall"], mean, color="black", label="mean of the classes", linewidth=2.6)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.set_xlabel("recall", color=TEXT)
    axis.set_ylabel(f"precision ({KINDS.get(kind, kind)}, IoU 0.5)", color=TEXT)
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg_of(figure)


def confusion_figure(found: dict) -> str | None:
    """SVG of the shares of each true class that were predicted as each class."""
    counts = np.array(found.get("confusion") or [], float)
    if not counts.size or len(found["classes"]) > MAX_CLASSES:
        return None
    names = found["classes"]
    detects = found["task"] == "detection"
    rows = [*names, "nothing there"] if detects else names
    columns = [*names, "not found"] if detects else names
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    side = float(np.clip(0.5 * len(rows) + 2.2, 4.5, 11))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", facecolor="white")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(labelsize=9 if len(rows) <= 30 else 5, length=0)
    axis.set_xlabel("predicted", color=TEXT)
    axis.set_ylabel("true", color=TEXT)
    for (row, column), share in np.ndenumerate(shares if len(rows) <= MAX_NUMBERS + 1 else []):
        if counts[row, column]:
            text = f"{counts[row, column]:.0f}" if detects else f"{100 * share:.0f}"
            colour = "white" if share > 0.5 else TEXT
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the row")
    return svg_of(figure)


def confusion_note(found: dict) -> str:
    """What the figure shows, in words."""
    if found["task"] == "detection":
        return (
            "Confusions: objects of each true class (row) by what was found there, at IoU 0.5 and "
            "scores from 0.3 on. Last column: not found; last row: found where nothing is."
        )
    return "Confusions: the pixels of each true class (row) by predicted class, in percent."


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"

"""What a test found per class, for the page: a table, precision over recall, confusions."""

import numpy as np
from matplotlib.figure import Figure

from ..visualization.figures import CLASSES, TEXT
from .curves import SIZE, STYLES, legend_below, svg_of

IOU_TYPES = {"bbox": "box", "segm": "mask"}
MAX_LINES = 7  # classes with a curve of their own
MAX_NUMBERS = 15  # classes up to which confusions are written as numbers, too
MAX_CLASSES = 100  # with more a picture of confusions shows nothing


def class_table(results: dict) -> list[list[str]]:
    """Rows of cells, their head first; nothing where there is nothing per class."""
    if not results.get("classes"):
        return []
    columns: dict[str, list] = {}
    if results["task"] == "detection":
        columns["objects"] = results["objects"]
        for iou_type in results["ap"]:
            columns[f"{IOU_TYPES.get(iou_type, iou_type)} AP"] = results["ap"][iou_type]
            columns[f"{IOU_TYPES.get(iou_type, iou_type)} AP50"] = results["ap50"][iou_type]
        digits = 3
    else:
        columns |= {"IoU, %": results["iou"], "accuracy, %": results["accuracy"]}
        digits = 1
    rows = [["class", *columns]]
    for k, name in enumerate(results["classes"]):
        values = [column[k] for column in columns.values()]
        rows.append([name, *(_cell(value, digits) for value in values)])
    return rows


def precision_curve(results: dict) -> str | None:
    """SVG of precision over recall at IoU 0.5, of the mean and of some classes."""
    iou_type = next(iter(results.get("precision") or {}), None)
    if iou_type is None:
        return None
    curves = {
        name: values
        for name, values in zip(results["classes"], results["precision"][iou_type], strict=True)
        if values
    }
    if not curves:
        return None
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    axis = figure.subplots()
    if len(curves) <= MAX_LINES:
        for k, (name, values) in enumerate(curves.items()):
            style = STYLES[k % len(STYLES)]
            axis.plot(results["recall"], values, style, color=CLASSES[k], label=name, linewidth=1.6)
    if len(curves) > 1:
        mean = np.mean(list(curves.values()), axis=0)
        axis.plot(
            results["recall"], mean, color="black", label="mean of the classes", linewidth=2.6
        )
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    axis.set_xlabel("recall", color=TEXT)
    axis.set_ylabel(f"precision ({IOU_TYPES.get(iou_type, iou_type)}, IoU 0.5)", color=TEXT)
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    legend_below(figure)
    return svg_of(figure)


def confusion_figure(results: dict) -> str | None:
    """SVG of the shares of each true class that were predicted as each class."""
    counts = np.array(results.get("confusion") or [], float)
    if not counts.size or len(results["classes"]) > MAX_CLASSES:
        return None
    names = results["classes"]
    detects = results["task"] == "detection"
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


def confusion_note(results: dict) -> str:
    """What the figure shows, in words."""
    if results["task"] == "detection":
        return (
            "Confusions: objects of each true class (row) by what was found there, at IoU 0.5 and "
            "scores from 0.3 on. Last column: not found; last row: found where nothing is."
        )
    return "Confusions: the pixels of each true class (row) by predicted class, in percent."


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"

"""Loss and metric curves of runs, as SVG."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..visualization.figures import CLASSES, TEXT
from .summary import metric_label
from .work_dir import Run

STYLES = ("-", "--", "-.", ":")  # told apart without colour, too
MARKERS = "osD^vPX*"
SIZE = (5.6, 3.2)  # inches: lettering stays legible when a phone shrinks the figure
MAX_LINES = 8  # of one figure
MAIN = ("coco/bbox_mAP", "coco/segm_mAP", "mIoU", "mAcc")  # metrics that get a curve first


def loss_curve(runs: Sequence[Run]) -> str | None:
    """SVG of the total loss over the training steps, a line per run; None without a loss."""
    lines = [
        (run.name, [e["step"] for e in run.train], [e["loss"] for e in run.train])
        for run in runs
        if run.train
    ]
    return _draw(lines, "step", "loss") if lines else None


def parts_curve(run: Run) -> str | None:
    """SVG of the parts of a run's loss; None if it has only one."""
    names = [key for key in (run.train[-1] if run.train else {}) if "loss" in key and key != "loss"]
    lines = []
    for name in names[:MAX_LINES]:
        entries = [e for e in run.train if name in e]
        lines.append((name, [e["step"] for e in entries], [e[name] for e in entries]))
    return _draw(lines, "step", "loss") if len(lines) > 1 else None


def metric_curves(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, SVG) of the main metrics over the validations of runs that have several."""
    known = [name for name in MAIN if any(name in e for run in runs for e in run.val)]
    if not known:
        names = [k for run in runs for e in run.val for k in e if k not in ("step", "time")]
        known = [name for name in dict.fromkeys(names) if "time" not in name][:2]
    curves = []
    for name in known:
        lines = []
        for run in runs:
            entries = [e for e in run.val if e.get(name, -1) != -1]
            lines.append((run.name, [e["step"] for e in entries], [e[name] for e in entries]))
        if any(len(xs) > 1 for _, xs, _ in lines):
            unit = "epoch" if runs[0].by_epoch else "step"
            curves.append((metric_label(name), _draw(lines, unit, metric_label(name))))
    return curves


def _draw(lines: Sequence[tuple[str, list, list]], across: str, up: str) -> str:
    """SVG of some lines (name, xs, ys)."""
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    axis: Axes = figure.subplots()
    for k, (name, xs, ys) in enumerate(lines):
        axis.plot(
            xs,
            ys,
            label=name,
            color=CLASSES[k % len(CLASSES)],
            linestyle=STYLES[k % len(STYLES)],
            marker=MARKERS[k % len(MARKERS)] if len(xs) < 15 else None,
            markersize=5,
            linewidth=1.8,
        )
    steps: Any = axis.xaxis.get_major_locator()
    steps.set_params(integer=True)  # there is no step 1.5
    axis.set_xlabel(across, color=TEXT)
    axis.set_ylabel(up, color=TEXT)
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    if up == "loss":
        axis.set_ylim(bottom=0)
    if len(lines) > 1:
        legend_below(figure)
    return svg_of(figure)


def legend_below(figure: Figure) -> None:
    """A legend under the axes: it hides no curve, and takes no width on a phone."""
    (axis,) = figure.axes
    longest = max(len(label) for label in axis.get_legend_handles_labels()[1])
    columns = 3 if longest <= 14 else 2 if longest <= 24 else 1
    rows = -(-len(axis.get_legend_handles_labels()[1]) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def svg_of(figure: Figure) -> str:
    """A figure's SVG, the same on every run."""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "ltm_mm", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()

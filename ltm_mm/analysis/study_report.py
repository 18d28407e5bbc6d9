"""Table and figure of a study: mean, spread and number of seeds (ours)."""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .study import Run
    from .study_file import Study

BLUE, GREY = "#0072B2", "#8C8C8C"  # told apart by shape and lightness too


class Cell(NamedTuple):
    """Mean, spread (sample standard deviation, None for one value) and number of values."""

    mean: float
    std: float | None
    n: int


Values = Mapping[str, Mapping[int, Mapping[str, float]]]


def collect(study: "Study", runs: Sequence["Run"]) -> Values:
    """Variant -> seed -> label -> value of every finished run."""
    values: dict[str, dict[int, dict[str, float]]] = {name: {} for name in study.variants}
    for run in runs:
        if result := run.result():
            named = {k: result["metrics"].get(v) for k, v in study.metrics.items()}
            values[run.variant.name][run.seed] = {k: v for k, v in named.items() if v is not None}
    return values


def aggregate(values: Sequence[float]) -> Cell | None:
    """Mean, spread and number; None of nothing."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), std, len(values))


def cell(values: Values, variant: str, label: str, baseline: str | None = None) -> Cell | None:
    """A variant's metric over its seeds, or its difference to a baseline seed by seed."""
    own = {s: v[label] for s, v in values[variant].items() if label in v}
    if baseline is None:
        return aggregate(list(own.values()))
    base = {s: v[label] for s, v in values[baseline].items() if label in v}
    return aggregate([own[s] - base[s] for s in own if s in base])


def to_markdown(study: "Study", values: Values) -> str:
    """One row per variant; with a baseline also the differences to it."""
    baselines = [None] + ([study.baseline] if study.baseline else [])
    columns = [(label, b) for b in baselines for label in study.metrics]
    digits = {
        label: 1 if any(abs(c.mean) > 1 for v in values if (c := cell(values, v, label))) else 3
        for label in study.metrics
    }
    head = [f"{label} - {b}'s" if b else label for label, b in columns]
    lines = [f"| variant | {' | '.join(head)} | n |", "|---" * (len(head) + 2) + "|"]
    for variant in values:
        cells = [cell(values, variant, label, b) for label, b in columns]
        texts = [
            "" if b == variant else _text(c, digits[label], signed=b is not None)
            for c, (label, b) in zip(cells, columns, strict=True)
        ]
        lines.append(f"| {variant} | {' | '.join(texts)} | {len(values[variant])} |")
    return "\n".join(lines)


def _text(c: Cell | None, digits: int, signed: bool) -> str:
    if c is None:
        return "–"
    mean = f"{c.mean:{'+' if signed else ''}.{digits}f}"
    return mean if c.std is None else f"{mean} ± {c.std:.{digits}f}"


def write_report(study: "Study", runs: Sequence["Run"], folder: Path) -> None:
    """Write ``report.md``, ``.csv``, ``.json`` and ``.png``; missing runs are left out."""
    values = collect(study, runs)
    folder.mkdir(parents=True, exist_ok=True)
    note = "Mean ± sample standard deviation over n seeds"
    note += f"; differences to {study.baseline} are taken seed by seed." if study.baseline else "."
    table = to_markdown(study, values)
    (folder / "report.md").write_text(f"# {study.name}\n\n{note}\n\n{table}\n")
    (folder / "report.json").write_text(json.dumps(values, indent=1))
    with open(folder / "report.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "metric", "mean", "std", "n"])
        for variant in values:
            for label in study.metrics:
                if c := cell(values, variant, label):
                    writer.writerow([variant, label, c.mean, "" if c.std is None else c.std, c.n])
    if any(values.values()):
        plot([(study, values)], folder / "report.png")


def plot(studies: Sequence[tuple["Study", Values]], file: Path) -> None:
    """One panel per study and metric: seeds as grey crosses, mean and spread in blue.

    Raises:
        ImportError: if matplotlib is missing; says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a study's figure needs matplotlib: pip install matplotlib") from error
    panels = [(study, values, label) for study, values in studies for label in study.metrics]
    rows = max(len(values) for _, values in studies)
    figure = Figure(figsize=(2.6 + 2.4 * len(panels), 1.2 + 0.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (study, values, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _panel(axes, values, label)
        axes.set_title(study.name if len(studies) > 1 else "", fontsize=8)
    figure.savefig(file, dpi=150)


def _panel(axes: object, values: Values, label: str) -> None:
    for row, variant in enumerate(values):
        seeds = [v[label] for v in values[variant].values() if label in v]
        if not seeds:
            continue
        c = aggregate(seeds)
        axes.scatter(seeds, [row] * len(seeds), marker="x", color=GREY, zorder=2)
        axes.errorbar(c.mean, row, xerr=c.std, fmt="o", color=BLUE, capsize=3, zorder=3)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#DDDDDD")
    axes.set_axisbelow(True)

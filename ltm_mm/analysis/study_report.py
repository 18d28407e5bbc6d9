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


def differences(
    values: Values, variant: str, label: str, baseline: str | None = None
) -> list[float]:
    """A variant's metric with each seed, or its difference to a baseline's with the same seed."""
    own = {s: v[label] for s, v in values[variant].items() if label in v}
    if baseline is None:
        return list(own.values())
    base = {s: v[label] for s, v in values[baseline].items() if label in v}
    return [own[s] - base[s] for s in own if s in base]


def cell(values: Values, variant: str, label: str, baseline: str | None = None) -> Cell | None:
    """Mean and spread of :func:`differences`."""
    return aggregate(differences(values, variant, label, baseline))


def to_markdown(study: "Study", values: Values) -> str:
    """One row per variant; with a baseline also the differences to it, seed by seed."""
    baselines = {b for v in values if (b := study.baseline_of(v))}
    digits = {
        label: 1 if any(abs(c.mean) > 10 for v in values if (c := cell(values, v, label))) else 3
        for label in study.metrics
    }
    head = list(study.metrics)
    if len(baselines) == 1:
        head += [f"{label} - {next(iter(baselines))}'s" for label in study.metrics]
    elif baselines:
        head += ["against", *(f"change in {label}" for label in study.metrics)]
    lines = [f"| variant | {' | '.join(head)} | n |", "|---" * (len(head) + 2) + "|"]
    for variant in values:
        texts = [_text(cell(values, variant, m), digits[m], signed=False) for m in study.metrics]
        baseline = study.baseline_of(variant)
        if len(baselines) > 1:
            texts.append(baseline or "")
        if baseline:
            cells = [cell(values, variant, m, baseline) for m in study.metrics]
            texts += [_text(c, digits[m], True) for c, m in zip(cells, study.metrics, strict=True)]
        elif baselines:
            texts += [""] * len(study.metrics)
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
    note += "; differences are taken seed by seed." if study.baseline else "."
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
    """One panel per study and metric of its figure: seeds as grey crosses, mean and spread in blue.

    Variants that have a baseline are drawn as differences to it, seed by seed.

    Raises:
        ImportError: if matplotlib is missing; says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a study's figure needs matplotlib: pip install matplotlib") from error
    panels = [
        (study, values, label)
        for study, values in studies
        for label in (study.figure or study.metrics)
    ]
    rows = max(len(values) for _, values in studies)
    figure = Figure(figsize=(2.6 + 2.4 * len(panels), 1.2 + 0.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (study, values, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _panel(axes, study, values, label)
        axes.set_title(study.name if len(studies) > 1 else "", fontsize=8)
    figure.savefig(file, dpi=150)


def _panel(axes: object, study: "Study", values: Values, label: str) -> None:
    compared = any(study.baseline_of(variant) for variant in values)
    if compared:
        axes.axvline(0, color=GREY, linewidth=0.8)
    for row, variant in enumerate(values):
        baseline = study.baseline_of(variant)
        if compared and not baseline:
            continue
        seeds = differences(values, variant, label, baseline)
        if not seeds:
            continue
        c = aggregate(seeds)
        axes.scatter(seeds, [row] * len(seeds), marker="x", color=GREY, zorder=2)
        axes.errorbar(c.mean, row, xerr=c.std, fmt="o", color=BLUE, capsize=3, zorder=3)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(f"change in {label}" if compared else label)
    axes.grid(axis="x", color="#DDDDDD")
    axes.set_axisbelow(True)

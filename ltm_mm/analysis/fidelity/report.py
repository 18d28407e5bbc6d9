"""What was found of a model's fidelity: rows, a table, a picture, and a file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..benchmark.latency import Spread, ratios
from ..benchmark.report import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {  # kind of a row -> name, colour and mark in the picture
    "plan": ("merging", "#4477aa", "o"),
    "learned": ("merging, learned", "#aa3377", "D"),
    "image": ("plain on a smaller image", "#ee6677", "s"),
    "pooling": ("pooling", "#bbbbbb", "v"),
    "tome": ("ToMe", "#228833", "^"),
    "jpeg": ("photo saved as JPEG", "#ccbb44", "_"),
}


@dataclass
class FidelityRow:
    """What was found of one model.

    Attributes:
        name: of the model.
        kind: 'plain', 'plan', 'learned', 'image', 'pooling', 'tome' or 'jpeg'.
        plan: the plan that a baseline is for; a plan's own name.
        macs: multiply-accumulates of the first photo.
        seconds: of each round on the first photo; empty if not measured.
        errors: relative error of each map, the mean over the photos.
        agreement: measure -> share of the plain model's predictions that stay, 0..1.
        metrics: the config's own metrics, where they were asked for.
        steadiness: share of the model's own predictions that noise leaves, 0..1; NaN if not known.
    """

    name: str
    kind: str = "plain"
    plan: str | None = None
    macs: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steadiness: float = math.nan


@dataclass
class Fidelity:
    """What was found of a model, plan by plan.

    Attributes:
        rows: the plain model first, each plan followed by its baselines.
        metadata: machine, photos and settings.
        no_faster: plans that take no less time than the plain model at this size, so that no
            smaller image takes as long.
    """

    rows: list[FidelityRow]
    metadata: dict[str, Any]
    no_faster: list[str] = field(default_factory=list)

    def reference(self) -> FidelityRow:
        """The plain model in the blocks that merging runs in, which times are compared with."""
        return [row for row in self.rows if row.kind == "plain"][-1]

    def speedup(self, row: FidelityRow) -> Spread:
        """How many times faster than the reference a row is, round by round."""
        return ratios(self.reference().seconds, row.seconds)

    def table(self) -> str:
        """All rows as a markdown table, and a sentence about plans that save no time."""
        head, *rows = self.cells()
        table = markdown_table(head, rows)
        if self.no_faster:
            table += f"\n\n{self.note()}"
        return table

    def note(self) -> str:
        """A sentence about plans that save no time; empty if all do."""
        plans = ", ".join(self.no_faster)
        return f"Merging saves no time at this image size: {plans}." if plans else ""

    def cells(self) -> list[list[str]]:
        """The table's head and rows."""
        measures, metrics = list(self.rows[0].agreement), list(self.rows[0].metrics)
        timed = bool(self.rows[0].seconds)
        head = ["model", "GMACs", *(["ms (quartiles)", "speed-up (quartiles)"] * timed)]
        noise = not all(math.isnan(row.steadiness) for row in self.rows)
        head += ["error of the maps", *(f"{m} %" for m in measures), *["with noise %"] * noise]
        head += metrics
        lines = [head]
        for row in self.rows:
            mark = "" if row.kind in ("plain", "plan", "learned") else "· "
            cells = [mark + row.name, f"{row.macs / 1e9:.2f}"]
            if timed:
                cells += [_quartiles(Spread.of(row.seconds), 1e3), _quartiles(self.speedup(row))]
            cells.append(" / ".join(_short(error) for error in row.errors))
            cells += [_percent(row.agreement[measure]) for measure in measures]
            cells += ["-" if math.isnan(row.steadiness) else f"{100 * row.steadiness:.3f}"] * noise
            cells += [f"{row.metrics[m]:.4g}" if m in row.metrics else "-" for m in metrics]
            lines.append(cells)
        return lines

    @classmethod
    def read(cls, path: Path) -> "Fidelity":
        """What :meth:`save` wrote as JSON.

        Raises:
            ValueError: if it is another file.
        """
        try:
            content = json.loads(path.read_text())
            rows = [FidelityRow(**_unknown_as_nan(row)) for row in content["rows"]]
            return cls(rows, content["metadata"], content["no_faster"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no table of tools/fidelity.py ({error!r})") from error

    def save(self, stem: Path) -> list[Path]:
        """Write ``stem.json``, and a picture ``stem.png`` where time was measured."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = [stem.with_name(f"{stem.name}.json")]
        rows = [asdict(row) for row in self.rows]
        content = dict(metadata=self.metadata, rows=_finite(rows), no_faster=self.no_faster)
        text = json.dumps(content, indent=1)
        files[0].write_text(text + "\n")
        if self.rows[0].seconds:
            files.append(stem.with_name(f"{stem.name}.png"))
            self.figure().savefig(files[1], dpi=120)
        return files

    def figure(self) -> "Figure":
        """Error of the maps over time; a line joins what none of its kind beats."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        axis.margins(x=0.12)
        highest = 0.0
        for kind, (name, colour, mark) in KINDS.items():
            rows = [row for row in self.rows if row.kind == kind]
            points = [(1 / self.speedup(row).median, _mean(row.errors)) for row in rows]
            shown = sorted(point for point in points if math.isfinite(point[1]))
            if not shown:
                continue
            highest = max(highest, *(error for _, error in shown))
            axis.plot(*zip(*shown, strict=True), mark, color=colour, label=name)
            axis.plot(*zip(*_pareto_front(shown), strict=True), color=colour, alpha=0.6)
            if kind == "plan":  # a long plan by its place in the table
                for number, (row, point) in enumerate(zip(rows, points, strict=True)):
                    label = row.name if len(row.name) <= 12 else f"plan {number + 1}"
                    axis.annotate(f" {label}", point, fontsize=8, va="bottom")
        axis.set_xlabel("time, share of the plain model's")
        axis.set_ylabel("error of the maps (mean)")
        axis.axvline(1, color="#222222", linewidth=1, linestyle="--", label="plain model's time")
        axis.set_ylim(0, 1.15 * highest or 1)
        axis.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return figure


def _pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points in order of time those with less error than all faster ones."""
    front: list[tuple[float, float]] = []
    for point in points:
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _quartiles(spread: Spread, scale: float = 1.0) -> str:
    digits, unit = (1, "") if scale > 1 else (2, "x")
    low, middle, high = (
        f"{value * scale:.{digits}f}" for value in (spread.low, spread.median, spread.high)
    )
    return f"{middle}{unit} ({low} - {high})"


def _short(error: float) -> str:
    if math.isnan(error):
        return "-"
    return "0" if error < 5e-6 else f"{error:.3f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _finite(node: object) -> object:
    """The same without NaN, which JSON does not know."""
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _unknown_as_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was before :func:`_finite`."""

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    return {
        **row,
        "errors": [known(error) for error in row["errors"]],
        "agreement": {name: known(share) for name, share in row["agreement"].items()},
        "metrics": {name: known(value) for name, value in row["metrics"].items()},
        "steadiness": known(row["steadiness"]),
    }

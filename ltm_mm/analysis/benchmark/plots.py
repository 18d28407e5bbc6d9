"""Pictures of measurements."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from .latency import Spread, ratios
from .parts import ordered
from .report import BenchmarkRow

# Of the parts of a backbone, in their order, then of others.
COLOURS = {"attention": "#4477aa", "mlp": "#66ccee", "merge": "#ee6677", "rest": "#bbbbbb"}
OTHERS = ("#ddcc77", "#117733", "#999933", "#882255", "#44aa99", "#332288", "#aa4499")


def plot_latency(path: Path, rows: Sequence[BenchmarkRow], title: str) -> None:
    """A bar per model and batch size: median forward time, coloured by where it goes.

    Args:
        path: the picture, ``.png`` or ``.svg``.
        rows: of one or several batch sizes; ratios are against each size's first.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(row.batch for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(batches), squeeze=False)[:, 0]
    used = ordered(part for row in rows for part in row.parts)
    others = [part for part in used if part not in COLOURS]
    colours = {**COLOURS, **dict(zip(others, cycle(OTHERS), strict=False))}
    for axis, batch in zip(axes, batches, strict=True):
        chosen = [row for row in rows if row.batch == batch]
        for place, row in enumerate(chosen):
            time = Spread.of(row.forward)
            start, total = 0.0, sum(row.parts.values())
            for part in used:
                # Shares of one traced pass, of the median of the untraced ones.
                width = time.median * 1e3 * row.parts.get(part, 0.0) / total if total else 0.0
                axis.barh(place, width, left=start, color=colours[part])
                start += width
            if not total:
                axis.barh(place, time.median * 1e3, color=COLOURS["rest"])
            spread = [[(time.median - time.low) * 1e3], [(time.high - time.median) * 1e3]]
            axis.errorbar(time.median * 1e3, place, xerr=spread, color="black", capsize=3)
            ratio = ratios(chosen[0].forward, row.forward).median
            axis.annotate(f"  {ratio:.2f}x", (time.high * 1e3, place), va="center")
        axis.set_yticks(range(len(chosen)), [row.name for row in chosen])
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_xlabel(f"forward pass, ms (median, quartiles), batch {batch}")
    handles = [axes[0].barh(0, 0, color=colours[part], label=part) for part in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

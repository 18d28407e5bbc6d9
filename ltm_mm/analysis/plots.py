"""Pictures of measurements."""

from collections.abc import Sequence
from pathlib import Path

from .latency import Spread, ratios
from .parts import PARTS
from .report import Row

COLOURS = dict(zip(PARTS, ("#4477aa", "#66ccee", "#ee6677", "#bbbbbb", "#ddcc77"), strict=True))


def plot_latency(path: Path, rows: Sequence[Row], title: str) -> None:
    """A bar per model and batch size: median forward time, coloured by where it goes.

    Args:
        path: the picture, ``.png`` or ``.svg``.
        rows: of one or several batch sizes; ratios are against each size's first.
        title: above the picture.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    batches = list(dict.fromkeys(row.batch for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(batches), squeeze=False)[:, 0]
    for axis, batch in zip(axes, batches, strict=True):
        chosen = [row for row in rows if row.batch == batch]
        for place, row in enumerate(chosen):
            time = Spread.of(row.forward)
            start, total = 0.0, sum(row.parts.values())
            for part in PARTS:
                # Shares of one traced pass, of the median of the untraced ones.
                width = time.median * 1e3 * row.parts.get(part, 0.0) / total if total else 0.0
                axis.barh(place, width, left=start, color=COLOURS[part])
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
    used = [part for part in PARTS if any(part in row.parts for row in rows)]
    handles = [axes[0].barh(0, 0, color=COLOURS[part], label=part) for part in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

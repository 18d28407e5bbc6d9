"""Draw the README's figure: speed-up over agreement, of a Swin's merging, learned or not.

python tools/real_weights.py swin --ltm balanced fast fastest --learn 300 --time-of ltm-swin-t
python docs/figures/claim.py
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from ltm_mm.analysis.benchmark.latency import ratios
from ltm_mm.analysis.fidelity.report import KINDS

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--found", default=ROOT / "work_dirs/real_weights/swin.json", type=Path)
    parser.add_argument("--out", default=Path(__file__).with_suffix(".png"), type=Path)
    args = parser.parse_args()
    print(draw(json.loads(args.found.read_text())["rows"], args.out))


def draw(rows: list[dict], out: Path) -> Path:
    """Speed-up (x) over the pixels that change their class (y, on a log scale)."""
    plain = [row for row in rows if row["kind"] == "plain"][-1]["seconds"]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    for kind in ("plan", "learned", "image", "pooling"):
        label, colour, mark = KINDS[kind]
        points = sorted(
            (ratios(plain, row["seconds"]).median, changed(row), row["name"])
            for row in rows
            if row["kind"] == kind and not row["name"].startswith("nothing merged")
        )
        if not points:
            continue
        x, y, names = zip(*points, strict=True)
        axis.plot(x, y, mark, ls="-", color=colour, label=label)
        if kind == "plan":
            for place, change, name in zip(x, y, names, strict=True):
                axis.annotate(name, (place, change), xytext=(6, -12),
                              textcoords="offset points", fontsize=8)  # fmt: skip
    for row in rows:
        if row["kind"] == "jpeg":
            axis.axhline(changed(row), color="0.75", lw=1, ls=":", zorder=0)
            saved = row["name"].removeprefix("photo ")
            axis.annotate(f"plain, photos {saved}", (0.99, changed(row)), xytext=(0, 2), ha="right",
                          xycoords=axis.get_yaxis_transform(), textcoords="offset points",
                          fontsize=7, color="0.4")  # fmt: skip
    axis.set_yscale("log")
    axis.invert_yaxis()
    ticks = (0.2, 0.5, 1, 2, 5, 10, 20)
    axis.set_yticks(ticks, [f"{100 - tick:g} %" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("speed-up of a Swin-T backbone, against itself without merging")
    axis.set_ylabel("pixels that keep their class")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize=8)
    figure.savefig(out, dpi=150)
    return out


def changed(row: dict) -> float:
    """Percent of the pixels that change their class."""
    return 100 - 100 * row["agreement"]["pixels"]


if __name__ == "__main__":
    main()

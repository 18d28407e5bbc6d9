"""Draw the README's figure: speed-up over agreement, of a Swin's merging, learned or not.

python tools/real_weights.py swin --learn 300 --train all --time-of ltm-swin-t  # the figures, first
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
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for kind, (name, colour, mark) in KINDS.items():
        own = [row for row in rows if row["kind"] == kind]
        points = sorted(
            (ratios(plain, row["seconds"]).median, 100 * row["agreement"]["pixels"], row["name"])
            for row in own
        )
        if not points:
            continue
        x, y, names = zip(*points, strict=True)
        axis.plot(x, [100 - agree for agree in y], mark, ls="-", color=colour, label=name)
        if kind == "plan":
            for place, agree, text in zip(x, y, names, strict=True):
                label = text if len(text) < 12 else ""
                axis.annotate(label, (place, 100 - agree), xytext=(5, 4),
                              textcoords="offset points", fontsize=8)  # fmt: skip
    axis.set_yscale("log")
    axis.invert_yaxis()
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    axis.set_yticks(ticks, [f"{100 - tick:g} %" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("speed-up of a Swin-T backbone, against itself without merging")
    axis.set_ylabel("pixels that keep their class")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right", fontsize=8)
    figure.savefig(out, dpi=150)
    return out


if __name__ == "__main__":
    main()

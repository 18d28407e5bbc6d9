"""Draws the data flow of LTM-Swin with the file of every step.

python docs/figures/architecture.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# What, its shape, the file that does the step to it; those in the loop once for every block.
STEPS = [
    ("image", "(B, 3, H, W)", ""),
    ("grid of tokens", "(B, H/4, W/4, C)", "models/backbones/swin_layers.py: patch embedding"),
    ("windows Z, shifted in every second block", "(B, n, N, C)", "ops/shifted.py: cut"),
    ("groups: masks G and U", "N tokens in P groups", "merging/matching.py, merging/masks.py"),
    ("merged tokens X~ = G^T Z", "(B, n, P, C)", "merging/groups.py: merge"),
    ("the block on them, f(X~)", "(B, n, P, C)",
     "layers/swin_block.py; keys by group size and\nposition bias: layers/window_attention.py"),
    ("tokens Y = Z + U (f(X~) - X~)", "(B, n, N, C)", "merging/formula.py: unmerge_update"),
    ("grid of tokens", "(B, H/4, W/4, C)", "ops/shifted.py: join"),
    ("map of the stage, one per stage: the pyramid", "(B, C, H/4, W/4)",
     "models/backbones/swin.py: norm"),
    ("neck and head of mmdet or mmseg", "", ""),
]  # fmt: skip
LOOP = (2, 7)


def draw() -> Figure:
    """The figure."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    axis = figure.subplots()
    for k, (what, shape, file) in enumerate(STEPS):
        y, inside = -k, LOOP[0] <= k <= LOOP[1]
        colour = "#dce9f5" if inside else "#eeeeee"
        axis.add_patch(
            FancyBboxPatch(
                (0, y - 0.28), 4.4, 0.56, boxstyle="round,pad=0.04", fc=colour, ec="#444444"
            )
        )
        axis.text(2.2, y + (0.1 if shape else 0), what, ha="center", va="center", fontsize=10)
        axis.text(2.2, y - 0.16, shape, ha="center", va="center", fontsize=8, color="#555555")
        axis.text(4.65, y + 0.5, file, va="center", fontsize=9, family="monospace")
        if k:
            start, end = (2.2, y + 0.66), (2.2, y + 0.34)
            axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12))
    back = FancyArrowPatch(
        (-0.05, -LOOP[1]), (-0.05, -LOOP[0]), connectionstyle="arc3,rad=-0.25", arrowstyle="-|>",
        mutation_scale=14, color="#4477aa",
    )  # fmt: skip
    axis.add_patch(back)
    axis.text(-1.25, -sum(LOOP) / 2, "every block", rotation=90, va="center", color="#4477aa")
    axis.set(xlim=(-1.5, 9), ylim=(-len(STEPS) + 0.5, 0.6))
    axis.axis("off")
    return figure


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".png")
    draw().savefig(file, dpi=110)
    print(file)

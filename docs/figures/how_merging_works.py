"""Draw the figure of docs/how-merging-works.md: one window, merged and led back.

python docs/figures/how_merging_works.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from ltm_mm.datasets import draw_image
from ltm_mm.layers import MaskModule
from ltm_mm.visualization.figures import HEAT, TEXT, caption, panels, save

WINDOW, SLOTS = 7, 5


def main() -> None:
    """Merge a window of a picture with the library's own masks, and draw each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=Path(__file__).with_suffix(".png"), type=Path)
    out = parser.parse_args().out

    tokens = window_tokens()  # (49, 3): colours stand for channels
    to_slots, back = masks(tokens)
    slots = to_slots.T @ tokens  # X~ (25, 3)
    shown = int(back.argmax(-1).bincount().argmax())  # the slot that most tokens go back from
    update = torch.linspace(-0.05, 0.2, SLOTS).repeat(SLOTS, 1).flatten().unsqueeze(-1)
    figure, axes = panels(1, 6, 1, extra=1.5)
    steps = [
        ("Z: tokens\nafter attention", tokens, WINDOW),
        ("one column of G:\nwhat a slot is made of", to_slots[:, shown], WINDOW),
        ("X~ = Gᵀ Z: slots;\nthe next blocks run here", slots, SLOTS),
        ("Y~: slots after\nthose blocks", slots + update, SLOTS),
        ("U (Y~ − X~): the update,\nled back to the tokens", back @ update[:, 0], WINDOW),
        ("Y = Z + U (Y~ − X~):\nno detail of Z is lost", tokens + back @ update, WINDOW),
    ]
    for axis, (title, values, side) in zip(axes[0], steps, strict=True):
        draw(axis, values.numpy(), side, signed=title.startswith("U"))
        axis.set_title(title, fontsize=10, color=TEXT)
    group = (back.argmax(-1) == shown).reshape(WINDOW, WINDOW).numpy()
    outline(axes[0, 1], group)
    outline(axes[0, 2], np.arange(SLOTS**2).reshape(SLOTS, SLOTS) == shown)
    caption(
        figure,
        f"One window of {WINDOW} × {WINDOW} tokens, merged into {SLOTS} × {SLOTS} slots and back. "
        "Framed: one slot, and the tokens that give it most of their way back. Colours stand "
        "for channels; the update is made up (orange: less, purple: more).",
    )
    print(save(figure, out))


def window_tokens() -> Tensor:
    """49 tokens ``(N, 3)``: mean colours of patches at the edge of a shape, 0..1."""
    image, objects, _ = draw_image("val", 50)
    rows, columns = np.nonzero(objects == 1)
    y, x = int(np.median(rows)), int(columns.max())
    side = 4 * WINDOW
    y0, x0 = (int(np.clip(c - side // 2, 0, image.shape[0] - side)) for c in (y, x))
    crop = image[y0 : y0 + side, x0 : x0 + side].reshape(WINDOW, 4, WINDOW, 4, 3)
    return torch.from_numpy(crop.mean((1, 3)).reshape(-1, 3) / 255).float()


def masks(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """G and U ``(N, P)`` of an untrained mask module."""
    channels = torch.cat((tokens, 1 - tokens), -1)  # normalised, they still say how bright it is
    with torch.no_grad():
        to_slots, _, back = MaskModule(WINDOW, SLOTS, steps=2)(channels[None, None])
    return to_slots[0, 0], back[0, 0]


def draw(axis: Axes, values: NDArray, side: int, signed: bool) -> None:
    """A grid of colours ``(N, 3)`` or of values ``(N,)``."""
    grid = values.reshape(side, side, -1).squeeze()
    if grid.ndim == 3:
        axis.imshow(grid.clip(0, 1))
    else:
        top = float(np.abs(grid).max())
        axis.imshow(grid, cmap="PuOr" if signed else HEAT, vmin=-top if signed else 0, vmax=top)
    for k in range(1, side):
        axis.axhline(k - 0.5, color="white", linewidth=0.8)
        axis.axvline(k - 0.5, color="white", linewidth=0.8)


def outline(axis: Axes, inside: NDArray) -> None:
    """Frame some cells of a grid."""
    for y, x in zip(*np.nonzero(inside), strict=True):
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, color="#D55E00", lw=2.2))


if __name__ == "__main__":
    main()

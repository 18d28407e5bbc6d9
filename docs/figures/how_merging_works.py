"""Draw the figure of docs/how-merging-works.md: which tokens of a photo share a group.

python docs/figures/how_merging_works.py

Needs a Swin with trained weights (`models.py` in LTM_SHARED_REAL, by default ../shared/real) and a
photo (COCO's val2017/000000261888.jpg in LTM_SHARED_DATA, by default ../shared/data/coco_mini).
"""

import ltm_mm  # isort: skip  (first: it replaces mmcv's compiled ops)

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np

from ltm_mm.errors import UserError, clean_errors
from ltm_mm.visualization import BlockGroups, View, merge_groups_of, save
from ltm_mm.visualization.figures import caption, enlarged, heading, panels, show
from ltm_mm.visualization.merge_map import Box, Pixels, mean_colours, outlines
from ltm_mm.visualization.panels import frame

ROOT = Path(__file__).parents[2]
PHOTO = "coco_mini/val2017/000000261888.jpg"  # CC BY 2.0
SIDE = 448  # pixels
KEEP = (25, 16, 9, None)  # tokens kept of each window of 49, stage by stage
WINDOW = 7  # tokens per window side
# What is drawn of the photo (y0, x0, y1, x1): whole windows of these blocks.
CROP, PART = (112, 224, 336, 448), (140, 280, 252, 392)
BLOCKS = {
    "early": ("stages.0.blocks.0", PART),
    "middle": ("stages.1.blocks.0", CROP),
    "late": ("stages.2.blocks.4", CROP),
}
PANEL = 896  # pixels of the figure that a part of the photo is drawn with


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=Path(__file__).with_suffix(".png"), type=Path)
    with clean_errors():
        print(draw(parser.parse_args().out))


def draw(out: Path) -> Path:
    """The photo, and its groups in an early, a middle and a late block."""
    models = read_models(folder("LTM_SHARED_REAL", "real") / "models.py")
    photo = folder("LTM_SHARED_DATA", "data") / PHOTO
    if not photo.is_file():
        raise UserError(f"{photo} is missing: set LTM_SHARED_DATA to the folder of coco_mini")
    inputs = models.picture(photo, SIDE)
    pixels = inputs[0].permute(1, 2, 0).numpy() * models.STD + models.MEAN
    image = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    backbone = ltm_mm.apply(models.street_swin(), keep=KEEP).backbone
    found = {block.name: block for block in merge_groups_of(backbone, inputs)}

    y0, x0, y1, x1 = CROP
    figure, axes = panels(1, len(BLOCKS) + 1, 1, extra=1.0)
    show(axes[0, 0], image[y0:y1, x0:x1])
    frame(axes[0, 0], tuple(at - start for at, start in zip(PART, (y0, x0) * 2, strict=True)))
    heading(axes[0, 0], "photo\n(framed: the early block's part)")
    for axis, (when, (name, box)) in zip(axes[0, 1:], BLOCKS.items(), strict=True):
        keep = KEEP[int(name.split(".")[1])]
        show(axis, merged(image, found[name], box))
        heading(axis, f"{when} block, stride {found[name].stride}:\n{keep} merged tokens for 49")
    caption(
        figure,
        "Each group of tokens in the mean colour of its pixels; no group leaves its window (white "
        "lines). Swin of width 32, weights trained on street photos.",
    )
    return save(figure, out)


def folder(variable: str, name: str) -> Path:
    """A folder beside the repository, or where a variable of the environment says."""
    path = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not path.is_dir():
        raise UserError(f"{path} is missing: set {variable} to a folder that has it")
    return path


def read_models(file: Path) -> object:
    """The module that builds networks with trained weights."""
    spec = importlib.util.spec_from_file_location("models", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def merged(image: Pixels, block: BlockGroups, box: Box) -> Pixels:
    """A part of an image ``(H, W, 3)``, each group in its mean colour, with thin borders."""
    (y0, x0, y1, x1), size = box, (image.shape[0], image.shape[1])
    scale = PANEL // (y1 - y0)
    labels = View(size, size).enlarge(block.groups, block.stride, scale, box)
    drawn = mean_colours(enlarged(image[y0:y1, x0:x1], scale), labels).astype(float)
    drawn[outlines(labels)] *= 0.6
    window = WINDOW * block.stride * scale
    for k in range(window, PANEL, window):
        drawn[k - 3 : k + 3] = drawn[:, k - 3 : k + 3] = 255
    return drawn.astype(np.uint8)


if __name__ == "__main__":
    main()

"""Draw the README's first figure from the model that `make demo` trained.

python docs/figures/demo.py work_dirs/demo
"""

import ltm_mm  # noqa: F401  isort: skip  (first: it stands in for mmcv's compiled ops)

import argparse
from pathlib import Path

from mmengine.registry import DefaultScope

from ltm_mm.engine import UserError, clean_errors
from ltm_mm.report import read_run
from ltm_mm.visualization import Artist, build_pair, draw_merge_map, save
from ltm_mm.visualization.comparison import draw_differences, draw_prediction
from ltm_mm.visualization.figures import caption, heading, panels, show
from ltm_mm.visualization.panels import block_title
from ltm_mm.visualization.run import pipeline_of

IMAGE = "data/shapes/val/000050.png"
SCALE = 5  # pixels of a merge map per pixel of the image
BLOCKS = (0, -1)  # merging blocks whose maps are shown: the first and the last
SCORE = 0.7  # below it this small model finds most shapes a second time, as another class


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir")
    parser.add_argument("--image", default=IMAGE, help="[%(default)s]")
    parser.add_argument("--out", default=Path(__file__).with_suffix(".png"), type=Path)
    args = parser.parse_args()
    with clean_errors():
        print(draw(args.work_dir, Path(args.image), args.out))


def draw(work_dir: str, image: Path, out: Path) -> Path:
    """Image, merge maps, predictions without and with merging, and their differences."""
    run = read_run(work_dir)
    if run.checkpoint is None:
        raise UserError(f"{work_dir} has no checkpoint: run make demo first")
    with DefaultScope.overwrite_default_scope(run.cfg.default_scope):
        pair = build_pair(run.cfg, str(run.checkpoint), False, "cpu", 0)
        pipeline = pipeline_of(run.cfg)
        artist = Artist(pair.merged, pair.plain, pipeline, pair.classes, blocks=BLOCKS)
        scene, plain, merged = artist.look(image, SCORE)
    figure, axes = panels(2, 3, scene.aspect, extra=1.3)
    show(axes[0, 0], scene.image)
    heading(axes[0, 0], "image")
    for axis, block in zip(axes[0, 1:], scene.blocks, strict=True):
        show(axis, draw_merge_map(scene.image, block, scene.view, SCALE))
        heading(axis, f"groups in {block_title(block)}")
    for axis, found, name in zip(axes[1], (plain, merged), ("without", "with"), strict=False):
        draw_prediction(axis, scene.image, found, {}, pair.classes)
        heading(axis, f"{name} merging: {len(found)} objects")
    heading(axes[1, 2], draw_differences(axes[1, 2], scene.image, plain, merged, pair.classes))
    metrics = run.metrics
    named = {"box AP50": "coco/bbox_mAP_50", "mask AP50": "coco/segm_mAP_50"}
    scores = "".join(f"; {k} {metrics[v]:.3f}" for k, v in named.items() if v in metrics)
    caption(
        figure,
        f"{run.checkpoint.name} of make demo (toy-scale: built-in shapes, a narrow Swin)"
        f"{scores}. Objects from a score of {SCORE} on; orange: only without "
        "merging, blue: only with it.",
    )
    return save(figure, out)


if __name__ == "__main__":
    main()

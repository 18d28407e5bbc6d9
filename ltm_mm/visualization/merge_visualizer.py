"""Draws what merging does to an image: runs both models and makes the figures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from mmengine.dataset import Compose
from PIL import Image
from torch import nn

from ..engine.photos import check_whole, unusable
from ..engine.predictions import Instances, Prediction, predict
from ..errors import UserError
from .comparison import comparison_figure
from .figures import DPI, save
from .merge_map import Pixels, View, choose_blocks, draw_merge_map, merge_groups_of
from .panels import Scene, detailed_points, merge_map_figure, shared_figure

Points = Sequence[tuple[int, int]]


class ImageComparison(NamedTuple):
    """An image, what merging did to it, and what is predicted without and with merging."""

    scene: Scene
    plain: Prediction
    merged: Prediction


class MergeVisualizer:
    """Draws what merging does to images.

    Args:
        merged: mmdet's or mmseg's model with merging, in eval mode.
        plain: the same without.
        pipeline: the test pipeline's transforms, with which images are loaded and prepared.
        classes: names of the classes; None: numbers.
        caption: a line about model and weights for the figures.
        dpi: pixels per inch of the figures.
        blocks: see :func:`.merge_map.choose_blocks`.
    """

    def __init__(
        self,
        merged: Any,
        plain: nn.Module,
        pipeline: Compose,
        classes: Sequence[str] | None = None,
        caption: str = "",
        dpi: int = DPI,
        blocks: Sequence[int] | None = None,
    ) -> None:
        self.merged, self.plain = merged, plain
        self.load, *prepare = pipeline.transforms
        self.prepare = Compose(prepare)
        self.classes = classes
        self.caption = caption
        self.dpi = dpi
        self.blocks = blocks

    def compare(self, file: Path, score_thr: float = 0.3) -> ImageComparison:
        """Run both models on an image.

        Args:
            file: the image.
            score_thr: instances below this score are left out.

        Raises:
            UserError: if the image cannot be read.
        """
        image, data = self.read(file)
        return ImageComparison(
            self.scene(image, data),
            predict(self.plain, data, score_thr),
            predict(self.merged, data, score_thr),
        )

    def predictions_figure(self, comparison: ImageComparison, score_thr: float) -> Figure:
        """What both models predict, and where they differ."""
        scored = isinstance(comparison.plain, Instances)
        note = f"{self.caption}{f', scores from {score_thr:g}' * scored}"
        return comparison_figure(
            comparison.scene.image, comparison.plain, comparison.merged, self.classes, note
        )

    def draw(
        self, file: Path, folder: Path, points: Points | None = None, score_thr: float = 0.3
    ) -> list[Path]:
        """Write all pictures of one image into a folder.

        Args:
            file: the image.
            folder: is made where it is missing.
            points, score_thr: see :func:`visualize`.

        Returns:
            The files written.

        Raises:
            UserError: if the image cannot be read, or a point lies outside of it.
        """
        comparison = self.compare(file, score_thr)
        scene = comparison.scene
        height, width = scene.view.image
        for x, y in points or ():
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(
                    f"--points {x},{y} lies outside of {file}: give 0..{width - 1},0..{height - 1}"
                )
        figures = {
            "merge_map": merge_map_figure(scene),
            "shared": shared_figure(scene, points or detailed_points(scene.image)),
            "predictions": self.predictions_figure(comparison, score_thr),
        }
        written = [
            save(figure, folder / f"{name}.png", self.dpi) for name, figure in figures.items()
        ]
        for block in scene.blocks:
            path = folder / f"merge_map_{block.name.replace('.', '_')}.png"
            Image.fromarray(draw_merge_map(scene.image, block, scene.view)).save(path)
            written.append(path)
        return written

    def read(self, file: Path) -> tuple[Pixels, dict[str, Any]]:
        """An image as the pipeline loads it, and what the pipeline makes of it.

        Returns:
            The image ``(H, W, 3)`` in RGB, turned as its EXIF tag says, and the packed sample.
        """
        if not Path(file).is_file():
            raise UserError(f"{file}: there is no such image")
        # The last two are what mmseg's data sets add and its steps read.
        named = dict(img_path=str(file), img_id=0, seg_fields=[], reduce_zero_label=False)
        try:
            loaded = self.load(named)
            check_whole(file)
        except MemoryError:
            raise
        except Exception as error:  # each imaging library has its own
            why = "is damaged or no image" if os.path.getsize(file) else "is empty"
            raise UserError(f"{file} {why}: give an image file") from error
        image = np.asarray(loaded["img"])
        image = image if image.ndim == 3 else image[..., None].repeat(3, -1)
        rgb = np.ascontiguousarray(image[..., 2::-1].clip(0, 255).astype(np.uint8))
        try:
            return rgb, self.prepare(loaded)
        except Exception as error:
            raise UserError(unusable(file, error)) from error

    def scene(self, image: Pixels, data: Mapping[str, Any]) -> Scene:
        """The groups of an image, of one pass of the backbone over all of it."""
        batch = {key: [value] for key, value in data.items()}
        inputs = self.merged.data_preprocessor(batch, False)["inputs"]
        view = View.from_meta(data["data_samples"].metainfo)
        groups = merge_groups_of(self.merged.backbone, inputs)
        if not groups:
            raise UserError(f"an image of {view.image} pixels has too few tokens to merge")
        try:
            blocks = choose_blocks(groups, self.blocks)
        except ValueError as error:
            raise UserError(str(error)) from error
        return Scene(image, view, blocks, self.caption)

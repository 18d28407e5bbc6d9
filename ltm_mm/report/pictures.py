"""Pictures of a run for the page: predictions without and with merging, merge maps."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tqdm import tqdm

from ..checks.loaders import datasets
from ..engine.photos import pipeline_of, some_images
from ..engine.predictions import Instances, Prediction
from ..errors import UserError
from ..visualization import MergeVisualizer, build_pair, merge_map_figure, pixels_of
from ..visualization.comparison import class_colours, draw_differences, draw_prediction
from ..visualization.merge_map import Pixels
from ..visualization.predictions import class_name
from .work_dir import Run

SIDE, DPI = 720, 130  # pixels of a picture's longer side; lettering legible on a phone, too
NAMED = 3  # classes of a label map that are named below it


@dataclass
class ReportPicture:
    """One image of the page; all pictures are data URIs.

    Attributes:
        name: of the image's file.
        size: width and height of ``plain``, ``merged`` and ``differences``, pixels.
        plain, merged: the predictions.
        differences: where they differ.
        merge_map: which pixels share a merged token.
        plain_says, merged_says, differs: what they show, in words.
    """

    name: str
    size: tuple[int, int]
    plain: str
    merged: str
    differences: str
    merge_map: str
    plain_says: str
    merged_says: str
    differs: str


def draw_pictures(
    run: Run, images: Sequence[Path] | int = 3, score_thr: float = 0.3, device: str = "cpu"
) -> list[ReportPicture]:
    """Draw some images with a run's newest checkpoint.

    Args:
        run: with a checkpoint.
        images: files, or how many images of the validation set.
        score_thr: instances below this score are not drawn.
        device: that the models run on.

    Raises:
        UserError: if the run has no checkpoint or merges no tokens, or an image is missing.
    """
    if run.checkpoint is None:
        raise UserError("there is no checkpoint to predict with")
    with DefaultScope.overwrite_default_scope(run.cfg.get("default_scope")):
        files = _validation_images(run, images) if isinstance(images, int) else images
        pair = build_pair(run.cfg, str(run.checkpoint), False, device, 0)
        visualizer = MergeVisualizer(pair.merged, pair.plain, pipeline_of(run.cfg), pair.classes)
        names = tqdm(files, desc=f"pictures of {run.name}", unit="image")
        return [_picture(visualizer, file, score_thr) for file in names]


def _validation_images(run: Run, count: int) -> list[Path]:
    cfg = (run.cfg.get("val_dataloader") or run.cfg.get("test_dataloader") or {}).get("dataset")
    if not cfg:
        raise UserError("the config has no validation set: name images with --images FILE ...")
    try:
        dataset, _ = next(datasets(DATASETS.build(cfg), "dataset"))
        return some_images(dataset, count)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the validation set cannot be read ({reason}): name images with --images FILE ..."
        ) from error


def _picture(visualizer: MergeVisualizer, file: Path, score_thr: float) -> ReportPicture:
    comparison = visualizer.compare(file, score_thr)
    image, plain, merged = comparison.scene.image, comparison.plain, comparison.merged
    colours = class_colours([plain, merged], visualizer.classes)
    differs = []

    def differences(axis: Axes) -> None:
        differs.append(draw_differences(axis, image, plain, merged, visualizer.classes))

    def predicted(prediction: Prediction, axis: Axes) -> None:
        draw_prediction(axis, image, prediction, colours, visualizer.classes)

    drawn = [_bare(image, partial(predicted, prediction)) for prediction in (plain, merged)]
    drawn.append(_bare(image, differences))
    plain_uri, merged_uri, differences_uri = map(data_uri, drawn)
    return ReportPicture(
        file.name,
        (drawn[0].shape[1], drawn[0].shape[0]),
        plain_uri,
        merged_uri,
        differences_uri,
        data_uri(pixels_of(merge_map_figure(comparison.scene))),
        _describe(plain, visualizer.classes),
        _describe(merged, visualizer.classes),
        differs[0],
    )


def _describe(prediction: Prediction, classes: Sequence[str] | None) -> str:
    """How many objects, or the largest classes and their shares of the pixels."""
    if isinstance(prediction, Instances):
        return f"{len(prediction)} objects"
    labels, counts = np.unique(prediction, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:NAMED]
    shares = 100 * counts / prediction.size
    return ", ".join(f"{class_name(classes, int(labels[k]))} {shares[k]:.1f} %" for k in largest)


def _bare(image: Pixels, draw: Callable[[Axes], None]) -> Pixels:
    """Let a function draw into a panel that is all of the picture."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    figure = Figure(figsize=(width * scale / DPI, height * scale / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    draw(axis)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="auto")
    return pixels_of(figure)


def data_uri(picture: Pixels | str) -> str:
    """An image (as WebP) or an SVG's text as a URI that holds all of it."""
    if isinstance(picture, str):
        return f"data:image/svg+xml;base64,{_base64(picture.encode())}"
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=88)
    return f"data:image/webp;base64,{_base64(buffer.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

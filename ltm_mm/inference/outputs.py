"""What predictions are written as: pictures, COCO's JSON, label maps, videos."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from PIL import Image

from ..engine.pictures import unique_names
from ..errors import UserError
from .inputs import Picture, frame_rate, is_video

NO_CATEGORIES = (
    "the test data of this config names no classes: set test_dataloader.dataset.metainfo"
)


class Drawings:
    """Predictions as mmdet or mmseg draws them: a ``.jpg`` per photo, an ``.mp4`` per video.

    Args:
        folder: for the files.
        sources: what is predicted on; no two files get one name.
        visualizer: the config's.
        metainfo: classes and palette of the data set.
        score_thr: detections from this score on are drawn.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Path],
        visualizer: Mapping[str, Any],
        metainfo: Mapping[str, Any],
        score_thr: float,
    ) -> None:
        self.folder = folder
        self.names = _names(sources, ".jpg", ".mp4")
        self.visualizer = VISUALIZERS.build({**visualizer, "vis_backends": None})
        colours = np.random.RandomState(42).randint(0, 255, (len(metainfo.get("classes") or ()), 3))
        # without a palette mmseg's data sets draw the same colours; mmdet's boxes need tuples
        palette = [tuple(colour) for colour in metainfo.get("palette") or colours.tolist()]
        self.visualizer.dataset_meta = {**metainfo, "palette": palette}
        # Both packages' visualizers hand over the finished picture here.
        self.drawn: list[NDArray] = []
        self.visualizer.add_image = lambda name, image, *args: self.drawn.append(image)
        draw = inspect.signature(self.visualizer.add_datasample).parameters
        self.options = {"pred_score_thr": score_thr} if "pred_score_thr" in draw else {}
        self.video: tuple[Path, tuple[int, int], cv2.VideoWriter] | None = None

    def write(self, picture: Picture, sample: BaseDataElement) -> None:
        """Draw and write a picture."""
        self.drawn.clear()
        self.visualizer.add_datasample(
            picture.name, picture.image, data_sample=sample, draw_gt=False, **self.options
        )
        file = self.folder / self.names[picture.source]
        file.parent.mkdir(parents=True, exist_ok=True)
        (image,) = self.drawn
        if picture.frame is None:
            Image.fromarray(image).save(file, quality=90)
        else:
            self._writer(picture.source, file, image).write(image[..., ::-1])

    def close(self) -> None:
        """Finish the last video."""
        if self.video:
            self.video[2].release()
        self.video = None

    def _writer(self, source: Path, file: Path, image: NDArray) -> cv2.VideoWriter:
        size = (image.shape[1], image.shape[0])
        if self.video is None or self.video[:2] != (file, size):
            self.close()
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self.video = (file, size, cv2.VideoWriter(str(file), codec, frame_rate(source), size))
        return self.video[2]


class CocoResults:
    """Detections as COCO's results files, and the images that they are of.

    ``images.json`` lists images and categories, ``predictions.bbox.json`` and, of a model with
    masks, ``predictions.segm.json`` are results: ``COCO("images.json").loadRes(...)`` reads both.
    mmdet's own metric writes them.

    Args:
        folder: for the files.
        classes: names by label; categories are numbered from 1 in this order.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        from mmdet.evaluation import CocoMetric

        self.folder = folder
        self.metric = CocoMetric(metric="bbox")
        self.metric.cat_ids = list(range(1, len(classes) + 1))
        self.images: list[dict[str, object]] = []
        self.categories = [dict(id=k, name=name) for k, name in enumerate(classes, 1)]

    def write(self, picture: Picture, sample: BaseDataElement) -> None:
        """Add the detections of a picture."""
        height, width = sample.ori_shape[:2]
        entry = dict(
            id=len(self.images) + 1, file_name=str(picture.source), width=width, height=height
        )
        if picture.frame is not None:
            entry["frame"] = picture.frame
        self.images.append(entry)
        # `instances` are the annotations, which there are none of
        self.metric.process({}, [{**sample.to_dict(), "img_id": entry["id"], "instances": []}])

    def close(self) -> None:
        """Write the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        listing = dict(info={}, images=self.images, categories=self.categories, annotations=[])
        (self.folder / "images.json").write_text(json.dumps(listing))
        results = [result for _, result in self.metric.results]
        if results:
            self.metric.results2json(results, str(self.folder / "predictions"))


class LabelMapFiles:
    """Label maps as ``.png`` files, numbered as those of the data set.

    Args:
        folder: for the files; the frames of a video get a folder of their own in it.
        sources: what is predicted on; no two files get one name.
    """

    def __init__(self, folder: Path, sources: Sequence[Path]) -> None:
        self.folder = folder
        self.names = _names(sources, ".png", "")

    def write(self, picture: Picture, sample: BaseDataElement) -> None:
        """Write the label map of a picture."""
        file = self.folder / self.names[picture.source]
        if picture.frame is not None:
            file = file / f"{picture.frame:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if "pred_sem_seg" in sample:
            labels = sample.pred_sem_seg.data.squeeze(0)
        else:  # mmdet's panoptic ones: instance * 1000 + class
            labels = sample.pred_panoptic_seg.sem_seg.squeeze(0) % 1000
        labels = labels.cpu().numpy() + int(bool(sample.get("reduce_zero_label", False)))
        Image.fromarray(labels.astype(np.uint8)).save(file)

    def close(self) -> None:
        """Nothing is left to write."""


def prediction_file(
    sample: BaseDataElement, folder: Path, sources: Sequence[Path], classes: Sequence[str] | None
) -> CocoResults | LabelMapFiles:
    """What writes the predictions of a model that gives samples like this one.

    Raises:
        UserError: they are neither detections nor label maps, or detections without class names.
    """
    if "pred_panoptic_seg" in sample or "pred_sem_seg" in sample:
        return LabelMapFiles(folder / "labels", sources)
    if "pred_instances" in sample:
        if not classes:
            raise UserError(NO_CATEGORIES)
        return CocoResults(folder, classes)
    raise UserError(
        f"the model predicts {', '.join(sample.keys()) or 'nothing'}: only detections and label "
        "maps can be written"
    )


def _names(sources: Sequence[Path], photo: str, video: str) -> dict[Path, str]:
    """A name for the output of each source."""
    names: dict[Path, str] = {}
    for suffix, of_video in ((photo, False), (video, True)):
        chosen = [str(path) for path in sources if is_video(path) == of_video]
        names |= {Path(file): name for file, name in unique_names(chosen, suffix).items()}
    return names

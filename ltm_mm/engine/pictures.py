"""Write what a test predicts, image by image, under names that no two images share."""

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image

from ..checks.loaders import datasets


def unique_names(files: Iterable[str], suffix: str | None = None) -> dict[str, str]:
    """A name for each image: its own; with its folders where two images share one.

    Args:
        files: paths of images.
        suffix: takes the place of the images' own.

    Returns:
        Path -> name, relative to an output folder.
    """
    files = list(dict.fromkeys(files))
    base = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in files] or ["/"])
    paths = {file: Path(os.path.relpath(os.path.abspath(file), base)) for file in files}
    if suffix is None:
        namings: list[Callable[[Path], str]] = [lambda path: path.name, str]
    else:
        namings = [lambda path: path.stem + suffix, lambda path: str(path.with_suffix(suffix))]
        namings.append(lambda path: f"{path}{suffix}")
    for naming in namings:
        names = {file: naming(path) for file, path in paths.items()}
        if len(set(names.values())) == len(names):
            break
    return names


class PredictionFiles(Hook):
    """Writes a file per test image; what cannot be written ends no evaluation.

    Args:
        folder: where the files go.
    """

    suffix: str | None = None

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.names: Mapping[str, str] = {}
        self.failed: list[str] = []

    def before_test(self, runner: Runner) -> None:
        """Find a name for every image."""
        files = []
        for dataset, _ in datasets(runner.test_dataloader.dataset, ""):
            infos = (dataset.get_data_info(i) for i in range(len(dataset)))
            files += [info["img_path"] for info in infos if info.get("img_path")]
        self.names = unique_names(files, self.suffix)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Write the files of a batch."""
        for sample in outputs or ():
            source = sample.img_path
            name = self.names.get(source) or unique_names([source], self.suffix)[source]
            try:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.write(runner, sample, self.folder / name)
            except Exception as error:  # each imaging library has its own
                why = " ".join((str(error) or type(error).__name__).split())
                self.failed.append(f"{source} ({why})")

    def after_test(self, runner: Runner) -> None:
        """Say what is missing."""
        if self.failed:
            print_log(
                f"{len(self.failed)} of {len(self.names)} images are not in {self.folder}, "
                f"first {self.failed[0]}",
                "current",
                logging.ERROR,
            )

    def write(self, runner: Runner, sample: BaseDataElement, file: Path) -> None:
        """Write the file of one image."""
        raise NotImplementedError


class Pictures(PredictionFiles):
    """Write mmdet's or mmseg's drawing of every test image under the image's own name.

    Their own hooks use the name alone, and mmseg's can only write into its log.

    Args:
        folder: where the pictures go.
        score_thr: detections from this score on are drawn.
    """

    def __init__(self, folder: str, score_thr: float = 0.3) -> None:
        super().__init__(folder)
        self.score_thr = score_thr

    def write(self, runner: Runner, sample: BaseDataElement, file: Path) -> None:
        """Draw ground truth and prediction side by side."""
        image = mmcv.imfrombytes(get(sample.img_path), channel_order="rgb")
        if image is None:
            raise ValueError("it is no picture of one or three channels")
        draw = runner.visualizer.add_datasample
        options = {}
        if "pred_score_thr" in inspect.signature(draw).parameters:  # mmdet's
            options["pred_score_thr"] = self.score_thr
        draw(file.name, image, data_sample=sample, out_file=str(file), **options)


class LabelMaps(PredictionFiles):
    """Write mmseg's predicted label maps as PNG files, numbered as those of the data set."""

    suffix = ".png"

    def write(self, runner: Runner, sample: BaseDataElement, file: Path) -> None:
        """Labels of one image; a data set whose label 0 does not count starts at 1."""
        labels = sample.pred_sem_seg.data.squeeze().cpu().numpy().astype(np.uint8)
        Image.fromarray(labels + np.uint8(bool(sample.get("reduce_zero_label", False)))).save(file)

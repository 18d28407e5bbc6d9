"""Whether label maps fit their images and the classes of a segmentor's data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, preview
from .notes import log_warning
from .randomness import preserve_rng_state
from .reading import ReadGuard
from .sizes import SAMPLED, evenly_spaced, image_step, loaded_size, rotation_advice, stored_size


@dataclass(frozen=True)
class LabelCheck:
    """Whether a label map as loaded has labels that exist, and the size of its image.

    On a GPU a label that does not exist ends in an error without a name, and a metric
    leaves its pixels out without a sign.

    Args:
        classes: labels run from 0 to ``classes - 1``.
        ignored: the label of pixels that do not count.
    """

    classes: int
    ignored: int

    def __call__(self, results: Mapping) -> str | None:
        """What is wrong with ``results['gt_seg_map']`` in a few words, None if nothing is."""
        labels = results["gt_seg_map"]
        if labels.ndim != 2:
            return f"has {labels.shape[-1]} channels; a label map has one, the label's number"
        image = tuple(results.get("ori_shape") or labels.shape)[:2]
        if labels.shape != image:
            return _other_size(labels.shape, image)
        wrong = labels[(labels >= self.classes) & (labels != self.ignored)]
        if not wrong.size:
            return None
        return (
            f"has the label {wrong.flat[0]}; with {self.classes} classes there are 0 to "
            f"{self.classes - 1}, and {self.ignored} for pixels that do not count"
        )


def _other_size(labels: Sequence[int], image: Sequence[int]) -> str:
    return (
        f"is of {labels[0]} x {labels[1]} pixels (height x width), its image of "
        f"{image[0]} x {image[1]}: label maps have the size of their images"
    )


def label_check(dataset: Any) -> LabelCheck | None:
    """The check of a data set of mmseg; None for another, whose classes are not its labels."""
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes or not hasattr(dataset, "reduce_zero_label"):
        return None
    return LabelCheck(len(classes), dataset.ignore_index)


def check_labels(dataset: Any, path: str) -> None:
    """Look at the label maps of a data set of mmseg: all files and sizes, and some labels.

    Args:
        dataset: as built; one that is not mmseg's passes.
        path: its dotted key in the config.

    Raises:
        UserError: names the file, or the option.
    """
    check = label_check(dataset)
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    index, load = next(
        ((i, s) for i, s in enumerate(steps) if type(s).__name__ == "LoadAnnotations"), (0, None)
    )
    if check is None or load is None:
        return
    reduces = getattr(load, "reduce_zero_label", None)
    if reduces is not None and reduces != dataset.reduce_zero_label:
        raise UserError(
            f"{path}.pipeline.{index} (LoadAnnotations) has reduce_zero_label={reduces}, the data "
            f"set {dataset.reduce_zero_label}: set {path}.reduce_zero_label=True if label 0 means "
            f"'other' and does not count, else {path}.pipeline.{index}.reduce_zero_label=False"
        )
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    _check_sizes(infos, dataset, path)
    _check_sample(infos, load, check, dataset, path)


def _check_sizes(infos: Sequence[Mapping], dataset: Any, path: str) -> None:
    """Compare the sizes of every image and its label map, as they are loaded."""
    _, step = image_step(dataset)
    for info in tqdm(infos, desc=f"looking at {path}", unit="image", delay=1, leave=False):
        file, labels = info["img_path"], stored_size(info.get("seg_map_path"))
        image = loaded_size(file, step) if labels else None
        if image and labels and image != labels:
            why = rotation_advice(file, dataset, path)
            raise UserError(f"{info['seg_map_path']} {_other_size(labels, image)}{why}")


def _check_sample(
    infos: Sequence[Mapping],
    load: Callable[[dict], dict],
    check: LabelCheck,
    dataset: Any,
    path: str,
) -> None:
    """Load some label maps as training will, and see which labels occur."""
    seen = np.zeros(0, np.int64)
    names = dataset.metainfo["classes"]
    file = ""
    for info in evenly_spaced(infos):
        file = str(info.get("seg_map_path"))
        _check_format(file)
        with preserve_rng_state():
            read: Any = ReadGuard(load, "seg_map_path", skip=False)(dict(info))
        labels = read["gt_seg_map"]
        if why := check(dict(gt_seg_map=labels)):
            raise UserError(f"{file} {why}")
        seen = np.union1d(seen, labels)
    if not seen.size:
        return
    occurring = seen[seen != check.ignored]
    if not occurring.size or (len(occurring) == 1 < check.classes and check.ignored in seen):
        raise UserError(
            f"the label maps of {path} hold only {' and '.join(map(str, seen))} as loaded, of "
            f"which {check.ignored} does not count ({min(SAMPLED, len(infos))} checked, the "
            f"last one {file}): draw {preview([f'{n} as {i}' for i, n in enumerate(names)])}"
        )
    absent = [name for i, name in enumerate(names) if i not in seen]
    if absent and len(infos) <= SAMPLED:
        log_warning(f"{path}: no label map has a pixel of {preview(absent)}")


def _check_format(file: str) -> None:
    """Say what would change labels on the way: lossy files, numbers beyond eight bits."""
    try:
        with Image.open(file) as picture:
            file_format, high = picture.format, picture.mode[0] in "IF"
            largest = int(np.asarray(picture).max()) if high else 0
    except (OSError, SyntaxError, ValueError):
        return
    if largest > 255:
        raise UserError(
            f"{file} has the label {largest}, and mmseg reads 8 bits per pixel (0 to 255): it "
            "would be taken for another one"
        )
    if file_format == "JPEG":
        raise UserError(
            f"{file} is a JPEG, whose compression changes labels: write label maps as PNG"
        )

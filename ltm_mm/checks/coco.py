"""What is wrong with a COCO annotation file, found while mmdet reads it.

mmdet leaves a box without area out, numbers labels by the file's order, and keeps the last of two
entries of one id, all without a word; what else is missing ends in a KeyError, at times after an
epoch. :func:`summarize` goes once over the file's entries. Faults of every use are errors at once;
those of one use (masks, evaluation) are kept for who knows the use.
"""

import gc
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

from ..errors import UserError
from .masks import RUN_LENGTH, mask_fault

OVERHANG = 2  # pixels that a box may reach beyond its image: annotation tools round


@dataclass
class CocoSummary:
    """What an annotation file holds.

    Attributes:
        file: its path.
        images: id -> file name.
        sizes: id -> height and width in pixels.
        categories: names in the file's order.
        ids: category's id -> name.
        instances: category's id -> instances that train.
        objects: ids of image and category -> instances that train.
        crowds: category's id -> instances that are a crowd, which neither train nor count.
        annotations: how many there are.
        faults: fault -> how many annotations have it, and the first of them.
    """

    file: str
    images: dict[object, str] = field(default_factory=dict)
    sizes: dict[object, tuple[float, float]] = field(default_factory=dict)
    categories: list[str] = field(default_factory=list)
    ids: dict[object, str] = field(default_factory=dict)
    instances: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)
    crowds: Counter = field(default_factory=Counter)
    annotations: int = 0
    faults: dict[str, tuple[int, Mapping]] = field(default_factory=dict)

    def note(self, fault: str, annotation: Mapping) -> None:
        """Count a fault, and keep the first annotation that has it."""
        count, first = self.faults.get(fault, (0, annotation))
        self.faults[fault] = count + 1, first

    def describe(self, fault: str) -> str | None:
        """A line about a fault, None if no annotation has it."""
        if fault not in self.faults:
            return None
        count, first = self.faults[fault]
        image = self.images.get(_hashable(first.get("image_id")))
        where = f"annotation {first.get('id')} of image {first.get('image_id')!r}"
        where += f" ({image})" if image else ""
        return f"{self.file}: {count} of {self.annotations} annotations {fault}, first {where}"

    def total(self, counts: Counter, names: Iterable[str]) -> int:
        """Instances of the categories of these names."""
        wanted = set(names)
        return sum(n for key, n in counts.items() if self.ids.get(key) in wanted)


# --- faults of one annotation; each test may rely on those before it ----------------------


def _lacks_key(key: str) -> Callable[[Mapping, Mapping], bool]:
    return lambda a, image: key not in a


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _no_box(a: Mapping, image: Mapping) -> bool:
    box = a["bbox"]
    return not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box))


def _small(a: Mapping, image: Mapping) -> bool:
    """Whether mmdet's ``CocoDataset`` leaves it out, in its own words."""
    x, y, w, h = a["bbox"]
    inner_w = min(x + w, image["width"]) - max(x, 0)
    inner_h = min(y + h, image["height"]) - max(y, 0)
    return inner_w <= 0 or inner_h <= 0 or a["area"] <= 0 or w < 1 or h < 1


def _beyond_image(a: Mapping, image: Mapping) -> bool:
    x, y, w, h = a["bbox"]
    return x + w > image["width"] + OVERHANG or y + h > image["height"] + OVERHANG


IDS = ("id", "image_id", "category_id")
NO_ID = "have an id that is neither a number nor text"
NO_BOX = "have a 'bbox' that is not four numbers: x, y, width, height in pixels"
NO_AREA = "have an 'area' that is no number"
BAD_CROWD = "have an 'iscrowd' that is neither 0 nor 1: mmdet takes any text for a crowd"
SMALL = "are left out by mmdet (box smaller than a pixel or outside of its image, or area 0)"
BEYOND = (
    f"have a box that reaches more than {OVERHANG} pixels beyond its image (COCO's boxes are "
    "x, y, width, height, not corners; or are the image's width and height exchanged?)"
)
NO_IMAGE = "are of an image that the file does not list"
NO_CATEGORY = "are of a category that the file does not list"
NO_CROWD_FLAG = "lack 'iscrowd', which COCO's metrics need (0 for a single object)"

UNTRAINED = " (and are left out in training)"

# Errors whatever the file is for.
KEYS = {"id", "image_id", "category_id", "bbox", "area"}
VALUES = {
    NO_ID: lambda a, image: not all(isinstance(a[k], (int, str, float)) for k in IDS),
    NO_BOX: _no_box,
    NO_AREA: lambda a, image: not _is_number(a["area"]),
    BAD_CROWD: lambda a, image: a.get("iscrowd", 0) not in (0, 1),
}
ALWAYS = {f"lack {key!r}": _lacks_key(key) for key in sorted(KEYS)} | VALUES


# --- the file -----------------------------------------------------------------------------


def summarize(content: object, file: str) -> CocoSummary:
    """Go over all entries of an annotation file once.

    Args:
        content: as parsed.
        file: its path, for messages.

    Raises:
        UserError: an entry is missing, of a wrong kind, or there twice, whatever its use.
    """
    if not isinstance(content, dict):
        raise UserError(_no_object(file, type(content).__name__))
    summary = CocoSummary(file)
    images = {}
    for entry in _entries(content, "images", ("id", "file_name", "width", "height"), file):
        if not all(_is_number(entry[key]) and entry[key] > 0 for key in ("width", "height")):
            raise UserError(
                f"{file}: image {entry['id']!r} ({entry['file_name']}) has the width "
                f"{entry['width']!r} and height {entry['height']!r}: give pixels"
            )
        images[entry["id"]] = entry
        summary.images[entry["id"]] = entry["file_name"]
        summary.sizes[entry["id"]] = entry["height"], entry["width"]
    for entry in _entries(content, "categories", ("id", "name"), file):
        summary.categories.append(entry["name"])
        summary.ids[entry["id"]] = entry["name"]
    annotations = _list(content, "annotations", file, needed=False)
    summary.annotations = len(annotations)
    # A file of tens of thousands of annotations takes a moment.
    for a in tqdm(annotations, desc=f"looking at {file}", unit="annotation", delay=1, leave=False):
        if not isinstance(a, dict):
            raise UserError(f"{file}: an entry of 'annotations' is {a!r}, no object")
        _count_annotation(summary, a, images)
    for fault in ALWAYS:
        if line := summary.describe(fault):
            raise UserError(line)
    repeated = _repeated(a["id"] for a in annotations)
    if repeated is not None:
        raise UserError(f"{file}: two annotations have the id {repeated!r}; ids must differ")
    return summary


def _no_object(file: str, type_name: str) -> str:
    return (
        f"{file} holds a {type_name}, and no object with the lists 'images', 'annotations' and "
        "'categories': it is no COCO annotation file"
    )


def _count_annotation(summary: CocoSummary, a: Mapping, images: Mapping) -> None:
    image = images.get(_hashable(a.get("image_id")))
    faults = VALUES if a.keys() >= KEYS else ALWAYS
    for fault, broken in faults.items():
        if broken(a, image or {}):
            return summary.note(fault, a)
    if image is None:
        return summary.note(NO_IMAGE, a)
    category = _hashable(a["category_id"])
    if category not in summary.ids:
        return summary.note(NO_CATEGORY, a)
    if a.get("ignore"):
        return None
    if _beyond_image(a, image):
        summary.note(BEYOND, a)
    if "iscrowd" not in a:
        summary.note(NO_CROWD_FLAG, a)
    small = _small(a, image)
    if wrong := mask_fault(a.get("segmentation"), image["height"], image["width"]):
        summary.note(wrong + UNTRAINED * small, a)
    if small:
        return summary.note(SMALL, a)
    if isinstance(a.get("segmentation"), dict) and not a.get("iscrowd"):
        summary.note(RUN_LENGTH, a)
    if a.get("iscrowd"):
        summary.crowds[category] += 1
    else:
        summary.instances[category] += 1
        summary.objects[image["id"], category] += 1
    return None


def _hashable(value: object) -> object:
    return repr(value) if isinstance(value, (list, dict)) else value


def _list(content: Mapping, key: str, file: str, needed: bool = True) -> list:
    entries = content.get(key, None if needed else [])
    if not isinstance(entries, list):
        raise UserError(f"{file} lacks {key!r}, a list: it is no COCO annotation file")
    return entries


def _entries(content: Mapping, key: str, needed: Sequence[str], file: str) -> Iterator[dict]:
    """Entries of a list of the file that have what they need, and ids of their own."""
    seen: dict = {}
    for entry in _list(content, key, file):
        lacking = [k for k in needed if not isinstance(entry, dict) or k not in entry]
        if lacking:
            raise UserError(f"{file}: an entry of {key!r} lacks {lacking[0]!r}: {str(entry)[:200]}")
        name = entry[needed[1]]
        if not isinstance(name, str):
            raise UserError(f"{file}: an entry of {key!r} has the {needed[1]} {name!r}, no text")
        entry_id = _hashable(entry["id"])
        if entry_id in seen:
            raise UserError(
                f"{file}: two of its {key} have the id {entry_id!r}, {seen[entry_id]!r} and "
                f"{name!r}, and one of them would take the other's annotations; give every one an "
                "id of its own"
            )
        seen[entry_id] = name
        yield entry


def _repeated(values: Iterable) -> object:
    seen = set()
    for value in values:
        value = _hashable(value)
        if value in seen:
            return value
        seen.add(value)
    return None


# --- where mmdet reads it -----------------------------------------------------------------


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles again and again among millions of new lists."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def inspect_coco_files() -> Iterator[dict[str, CocoSummary]]:
    """Summarize every COCO file that mmdet reads within, in the pass that reads it.

    Yields:
        Path -> what was found, as files are read.
    """
    from mmdet.datasets import coco as data_sets
    from mmdet.evaluation.metrics import coco_metric as metrics

    summaries: dict[str, CocoSummary] = {}

    class InspectedCOCO(data_sets.COCO):
        """mmdet's reader of COCO files, which summarizes the content."""

        def __init__(self, annotation_file: str | None = None) -> None:
            self.file = str(annotation_file)
            try:
                with _no_collection():
                    super().__init__(annotation_file)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{self.file} is not valid JSON ({error})") from error
            except AssertionError as error:  # of pycocotools: another type than a dict
                match = re.search(r"<class '(\w+)'>", str(error))
                raise UserError(_no_object(self.file, match[1] if match else "list")) from error

        def createIndex(self) -> None:
            self.summary = summaries[self.file] = summarize(self.dataset, self.file)
            super().createIndex()

    before = data_sets.CocoDataset.COCOAPI, metrics.COCO
    data_sets.CocoDataset.COCOAPI = metrics.COCO = InspectedCOCO
    try:
        yield summaries
    finally:
        data_sets.CocoDataset.COCOAPI, metrics.COCO = before

"""The built-in shapes data set: drawn on first use, the same on every machine.

Six classes of shapes, turned a little, partly hidden behind each other and of any bright
colour, on a darker, textured and scribbled background. What tells them apart is their outline:
colour, texture, place and size say nothing about the class. More than half of the objects are
small by COCO's measure (fewer than 32 x 32 visible pixels).

One folder for detectors and segmentors::

    data/shapes/
      train/*.png, val/*.png                        images, SIZE x SIZE x 3
      annotations/instances_{train,val}.json        COCO instances; RLE of the *visible* part
      annotations_semantic/{train,val}/*.png        0 = background, k = SHAPES[k - 1]

Every image is drawn from its own seed with integer draws, the four arithmetic operations and
comparisons alone, so pixels and annotations depend neither on the platform nor on its
mathematics library. Masks are run-length encoded because polygons cannot say "ring".
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PALETTE = (
    (230, 60, 60),
    (60, 180, 75),
    (60, 90, 230),
    (250, 200, 30),
    (220, 60, 220),
    (30, 200, 210),
)
"""Colour that each class is shown in."""
SIZE = 160
"""Height and width of an image in pixels."""
COUNTS = {"train": 500, "val": 100}
"""Images per split."""
RECIPE = "ltm_mm shapes v1"
"""Names the drawing below; a new name makes older folders be refused."""

_STAMP = "RECIPE.txt"
_SPLIT_SEEDS = {"train": 1, "val": 2}
_RADII = (10.0, 40.0)
_MIN_VISIBLE = 0.6
_MIN_PIXELS = 40
_MIN_CONTRAST = 150
_MIN_BRIGHT = 170
# Unit normals of a regular pentagon's sides, written out so that no cosine is computed.
_PENTAGON = (
    (0.0, 1.0),
    (-0.9510565162951535, 0.3090169943749474),
    (-0.5877852522924731, -0.8090169943749475),
    (0.5877852522924731, -0.8090169943749475),
    (0.9510565162951535, 0.3090169943749474),
)


def ensure_shapes(root: str | os.PathLike, counts: dict[str, int] | None = None) -> Path:
    """Draw the data set into ``root`` unless it is there already.

    The folder appears whole or not at all: it is drawn beside ``root`` and renamed when done.
    Processes that start together (the ranks of a distributed run) wait for the first one.

    Args:
        root: Folder of the data set, made with its parents.
        counts: Images per split; default :data:`COUNTS`. Ignored where ``root`` exists.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: ``root`` exists, but does not hold a data set of this recipe.
    """
    root = Path(root)
    if not _is_there(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f".{root.name}.lock"):
            if not _is_there(root):
                _draw_beside(root, COUNTS if counts is None else counts)
    return root


def draw_image(split: str, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw one image of a split.

    Returns:
        The image ``[SIZE, SIZE, 3]`` (uint8, RGB); a map ``[SIZE, SIZE]`` (uint8) of the object
        seen at each pixel, 0 for none and i for object i - 1; the class index of each object.
    """
    rng = np.random.RandomState([_SPLIT_SEEDS[split], index])  # RandomState's stream is frozen
    canvas = _background(rng)
    objects = np.zeros((SIZE, SIZE), np.uint8)
    areas: list[int] = []
    labels: list[int] = []
    for _ in range(rng.randint(2, 7)):
        label = int(rng.randint(len(SHAPES)))
        mask = _place(rng, label, objects, areas)
        if mask is None:
            continue
        areas.append(int(mask.sum()))
        labels.append(label)
        objects[mask] = len(labels)
        canvas[mask] = _fill(rng, canvas, mask)[mask]
    noise = 4 * rng.randint(-2, 3, (SIZE, SIZE, 1))
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), objects, labels


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """A boolean mask ``[H, W]`` as COCO's uncompressed run-length code."""
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(edges, prepend=0).tolist()
    if edges.size == 0 or edges[-1] < mask.size:
        counts.append(mask.size - int(edges[-1] if edges.size else 0))
    return {"size": list(mask.shape), "counts": counts}


def _is_there(root: Path) -> bool:
    """Whether ``root`` holds this data set; an error where it holds something else."""
    if not root.exists():
        return False
    stamp = root / _STAMP
    recipe = stamp.read_text().strip() if stamp.is_file() else "no shapes data set"
    if recipe != RECIPE:
        raise ValueError(
            f"{root} holds {recipe!r}, expected {RECIPE!r}: "
            "remove that folder or give another data_root"
        )
    return True


def _draw_beside(root: Path, counts: dict[str, int]) -> None:
    """Draw into ``.<name>.part`` beside ``root``, then rename; nothing stays if that fails."""
    part = root.parent / f".{root.name}.part"
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process
    try:
        part.mkdir()
        with tqdm(total=sum(counts.values()), desc=f"drawing {root}", unit="image") as bar:
            for split, count in counts.items():
                _draw_split(part, split, count, bar)
        (part / _STAMP).write_text(RECIPE + "\n")
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _draw_split(root: Path, split: str, count: int, bar: tqdm) -> None:
    """Write one split's images, semantic maps and COCO annotations."""
    folders = root / split, root / "annotations_semantic" / split
    for folder in (*folders, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        image, objects, labels = draw_image(split, index)
        name = f"{index:06d}.png"
        Image.fromarray(image).save(folders[0] / name, compress_level=1)
        classes = np.array([0, *(label + 1 for label in labels)], np.uint8)
        Image.fromarray(classes[objects]).save(folders[1] / name)
        images.append({"id": index + 1, "file_name": name, "height": SIZE, "width": SIZE})
        for number, label in enumerate(labels, 1):
            annotation = _annotation(objects == number, label)
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
        bar.update()
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES, 1)]
    content = {
        "info": {"description": RECIPE},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _annotation(mask: np.ndarray, label: int) -> dict:
    """The COCO fields of one visible mask ``[SIZE, SIZE]``; the box is in pixels, x y w h."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": label + 1,
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_rle(mask),
    }


def _place(
    rng: np.random.RandomState, label: int, objects: np.ndarray, areas: list[int]
) -> np.ndarray | None:
    """A mask for one more object on top that leaves enough of the others to be seen."""
    for _ in range(20):
        share = rng.randint(1001) / 1000
        radius = _RADII[0] + (_RADII[1] - _RADII[0]) * share * (1 + share) / 2
        span = SIZE - 1.6 * radius
        x, y = (0.8 * radius + span * rng.randint(1001) / 1000 for _ in range(2))
        mask = _shape(label, x, y, radius, rng.randint(-200, 201) / 1000)
        visible = np.bincount(objects[~mask], minlength=len(areas) + 1)[1:]
        if mask.sum() >= _MIN_PIXELS and all(
            seen >= max(_MIN_PIXELS, _MIN_VISIBLE * area)
            for seen, area in zip(visible, areas, strict=True)
        ):
            return mask
    return None


def _shape(label: int, x: float, y: float, radius: float, turn: float) -> np.ndarray:
    """The mask ``[SIZE, SIZE]`` of a shape about ``(x, y)``.

    ``turn`` is the tangent of half the angle: sine and cosine are rational in it.
    """
    cosine = (1 - turn * turn) / (1 + turn * turn)
    sine = 2 * turn / (1 + turn * turn)
    dx = (np.arange(SIZE)[None, :] + 0.5 - x) / radius
    dy = (np.arange(SIZE)[:, None] + 0.5 - y) / radius
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
    name = SHAPES[label]
    if name == "circle":
        return u * u + v * v <= 0.9
    if name == "ring":
        return (u * u + v * v <= 1) & (u * u + v * v >= 0.25)
    if name == "square":
        return (abs(u) <= 0.8) & (abs(v) <= 0.8)
    if name == "triangle":
        return (v <= 0.5) & (1.7320508 * abs(u) - v <= 1)
    if name == "cross":
        return ((abs(u) <= 0.3) & (abs(v) <= 1)) | ((abs(v) <= 0.3) & (abs(u) <= 1))
    # A point of the five-pointed star is inside at least four of its five long lines.
    inside = [a * u + b * v <= 0.32 for a, b in _PENTAGON]
    return np.sum(inside, 0) >= 4


def _colour(rng: np.random.RandomState) -> np.ndarray:
    return rng.randint(0, 256, 3)


def _fill(rng: np.random.RandomState, canvas: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A plain or striped surface ``[SIZE, SIZE, 3]`` that stands out from what it covers."""
    behind = canvas[mask].sum(0) // mask.sum()
    colour = _colour(rng)
    while colour.max() < _MIN_BRIGHT or abs(colour - behind).sum() < _MIN_CONTRAST:
        colour = _colour(rng)
    return colour + rng.randint(0, 26) * _stripes(rng)


def _stripes(rng: np.random.RandomState) -> np.ndarray:
    """A pattern ``[SIZE, SIZE, 1]`` of -1 and 1 in some direction."""
    a, b, width = rng.randint(-3, 4), rng.randint(1, 4), rng.randint(8, 21)
    phase = a * np.arange(SIZE)[None, :] + b * np.arange(SIZE)[:, None]
    return ((phase // width) % 2 * 2 - 1)[..., None]


def _background(rng: np.random.RandomState) -> np.ndarray:
    """Blotches, stripes and scribbles ``[SIZE, SIZE, 3]`` (int64, about 0..255)."""
    coarse = rng.randint(20, 100, 3) + rng.randint(-40, 41, (9, 9, 3))
    step = SIZE // 8
    cell, part = np.divmod(np.arange(SIZE), step)
    left, right = coarse[:, cell], coarse[:, cell + 1]
    wide = left * (step - part)[:, None] + right * part[:, None]
    canvas = wide[cell] * (step - part)[:, None, None] + wide[cell + 1] * part[:, None, None]
    canvas = np.clip(canvas // (step * step), 0, 255) + rng.randint(0, 12) * _stripes(rng)
    for _ in range(rng.randint(3, 9)):
        canvas[_stroke(rng)] = _colour(rng)
    return canvas


def _stroke(rng: np.random.RandomState) -> np.ndarray:
    """The mask of a straight distractor stroke, 1 to 3 pixels wide."""
    x0, y0 = rng.randint(0, SIZE, 2)
    dx, dy = rng.randint(-50, 51, 2)
    px, py = np.arange(SIZE)[None, :] - x0, np.arange(SIZE)[:, None] - y0
    length2 = dx * dx + dy * dy + 1
    along, across = px * dx + py * dy, px * dy - py * dx
    width = rng.randint(2, 7)
    return (along >= 0) & (along <= length2) & (4 * across * across <= width * width / 4 * length2)

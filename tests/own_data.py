"""Drawn photos in the formats that people have: VOC, YOLO, COCO, masks as PNG files, label maps."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

import numpy as np
from PIL import Image

from ltm_mm.datasets import SHAPES, draw_image
from ltm_mm.datasets.shapes import encode_rle


def drawn(count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[int], np.ndarray]]:
    """Name, photo, object numbers, their classes and boxes (x1, y1, x2, y2) of some photos."""
    for k in range(count):
        photo, objects, labels = draw_image("train", k)
        boxes = []
        for number in range(1, len(labels) + 1):
            ys, xs = np.nonzero(objects == number)
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        yield f"{k:03d}", photo, objects, labels, np.array(boxes)


def write_voc(folder: Path, count: int) -> None:
    """``voc/images/*.png`` and ``voc/annotations/*.xml``."""
    for name, photo, _, labels, boxes in drawn(count):
        root = Element("annotation")
        for label, box in zip(labels, boxes, strict=True):
            entry = SubElement(root, "object")
            SubElement(entry, "name").text = SHAPES[label]
            place = SubElement(entry, "bndbox")
            # pixels count from 1, and the last one is in the box
            for key, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), np.add(box, [1, 1, 0, 0]), strict=True
            ):
                SubElement(place, key).text = str(value)
        save(photo, folder / "voc" / "images" / f"{name}.png")
        (folder / "voc" / "annotations").mkdir(exist_ok=True)
        ElementTree(root).write(folder / "voc" / "annotations" / f"{name}.xml")


def write_yolo(folder: Path, count: int) -> None:
    """``yolo/images/{train,val}``, ``yolo/labels/{train,val}`` and ``yolo/data.yaml``."""
    root = folder / "yolo"
    for k, (name, photo, _, labels, boxes) in enumerate(drawn(count)):
        split = "val" if k % 5 == 4 else "train"
        height, width = photo.shape[:2]
        scale = np.array([width, height] * 2)
        whole = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        lines = [
            " ".join(map(str, (label, *row)))
            for label, row in zip(labels, whole / scale, strict=True)
        ]
        save(photo, root / "images" / split / f"{name}.png")
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"names: {list(SHAPES)}\n")


def write_masks(folder: Path, count: int) -> None:
    """``masks/images/*.png`` and ``masks/objects/*.png``."""
    for name, photo, objects, _, _ in drawn(count):
        save(photo, folder / "masks" / "images" / f"{name}.png")
        save(objects, folder / "masks" / "objects" / f"{name}.png")


def write_coco(folder: Path, count: int) -> None:
    """``data/mine`` as the shipped configs expect it."""
    root = folder / "data" / "mine"
    files = {
        split: dict(
            images=[],
            annotations=[],
            categories=[dict(id=k, name=name) for k, name in enumerate(SHAPES, 1)],
        )
        for split in ("train", "val")
    }
    for k, (name, photo, objects, labels, boxes) in enumerate(drawn(count)):
        data = files["val" if k % 5 == 4 else "train"]
        save(photo, root / "data" / "images" / f"{name}.png")
        data["images"].append(dict(id=k, file_name=f"{name}.png", height=160, width=160))
        for number, (label, box) in enumerate(zip(labels, boxes.tolist(), strict=True), 1):
            data["annotations"].append(
                dict(
                    id=100 * k + number,
                    image_id=k,
                    category_id=label + 1,
                    bbox=[*box[:2], box[2] - box[0], box[3] - box[1]],
                    area=int((objects == number).sum()),
                    segmentation=encode_rle(objects == number),
                    iscrowd=0,
                )
            )
    (root / "annotations").mkdir()
    for split, data in files.items():
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def write_label_maps(folder: Path, count: int) -> None:
    """``data/fruits_nuts_labels`` with the folders that the shipped config expects."""
    root = folder / "data" / "fruits_nuts_labels"
    for k, (name, photo, objects, labels, _) in enumerate(drawn(count)):
        split = "val" if k % 5 == 4 else "train"
        save(photo, root / "images" / split / f"{name}.jpg")
        classes = np.array([0, *(label + 1 for label in labels)], np.uint8)
        save(classes[objects], root / "labels" / split / f"{name}.png")


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)

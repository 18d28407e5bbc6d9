"""Whether what was exported computes what the model does, at sizes it was not traced with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .heads import WholeModel
from .reference import ImageDetections, predict, segment, unpack

TOLERANCE = 1e-4
MASK_IOU = 0.999
NOISE = 1e-6  # of normalised images, some 1e-4 of a grey level: what rounding amounts to
TRIES = 3


@dataclass(frozen=True)
class Difference:
    """How far two results for the same images lie apart.

    Attributes:
        batch: images.
        size: their height and width in pixels.
        largest: largest difference of two numbers, as a share of the output's largest
            number; the worst of all outputs. For boxes of pairs of detections.
        detections: of the model; None where it is no detector.
        lost: detections that only one of the two has.
        of_model, of_file: the same of the model and itself, and of the file and itself, for images
            that differ by ``NOISE``; None where the two results agree without.
        mask_iou: of the masks of all pairs together, where one pixel of each may sit on the
            threshold (it would be more than a thousandth of a small mask); None without masks.
    """

    batch: int
    size: tuple[int, int]
    largest: float
    detections: int | None = None
    lost: int = 0
    mask_iou: float | None = None
    of_model: "Difference | None" = None
    of_file: "Difference | None" = None

    def __str__(self) -> str:
        text = f"batch {self.batch}, {self.size[0]} x {self.size[1]}: {self._figures()}"
        if self.of_model is None or self.of_file is None:
            return text
        return (
            f"{text} (with pixels changed by {NOISE:g}, the model from itself: "
            f"{self.of_model._figures()}; the file from itself: {self.of_file._figures()})"
        )

    def _figures(self) -> str:
        text = f"{self.largest:.1e}"
        if self.detections is None:
            return text
        text = f"{text}, {self.detections} detections, {self.lost} lost"
        return text if self.mask_iou is None else f"{text}, mask IoU {self.mask_iou:.4f}"

    @property
    def mask_error(self) -> float:
        """Share of the masks' pixels that differ; 0 without masks."""
        return 0.0 if self.mask_iou is None else 1 - self.mask_iou

    @property
    def equal(self) -> bool:
        """Whether it is within rounding; one of a hundred detections may sit on a threshold.

        Rounding also decides which of two equally similar tokens merges: a
        file's result may be as far from the model's as either is from itself. The file rounds in
        another way, so there may be such a tie for it alone.
        """
        exact = Difference(0, self.size, 0.0, 0)
        return any(map(self._within, filter(None, (exact, self.of_model, self.of_file))))

    def _within(self, other: "Difference") -> bool:
        return (
            self.largest <= max(TOLERANCE, 2 * other.largest)
            and self.lost <= max((self.detections or 0) / 100, 2 * other.lost)
            and self.mask_error < max(1 - MASK_IOU, 2 * other.mask_error)
        )


def compare(
    model: nn.Module,
    run: Callable[[Tensor], Sequence[Tensor] | Tensor],
    sizes: Iterable[tuple[int, int]],
    batches: Sequence[int] = (1, 3),
    channels: int = 3,
    metadata: dict[str, Any] | None = None,
) -> Iterator[Difference]:
    """Run both on the same random images, one size and batch after the other.

    Args:
        model: in eager mode; it is called in eval mode. Of a detector, mmdet's own
            ``predict`` is called; of a segmentor, mmseg's own ``encode_decode``.
        run: what was exported.
        sizes: heights and widths in pixels.
        batches: numbers of images.
        channels: of the images.
        metadata: what the file says of itself; default: what the model says.

    Raises:
        ValueError: if the outputs are not of the same number or shapes.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        for batch in batches:
            images = torch.randn(batch, channels, *size, generator=generator)
            results = [partial(_results, model, metadata=metadata, run=r) for r in (None, run)]
            expected, file = (result(images) for result in results)
            difference = _distance(expected, file, images)
            if not difference.equal:
                others = [_perturbed(images, generator) for _ in range(TRIES)]
                difference = replace(
                    difference,
                    of_model=_worst([_distance(expected, results[0](x), images) for x in others]),
                    of_file=_worst([_distance(file, results[1](x), images) for x in others]),
                )
            yield difference


def _perturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images that are all but the same."""
    return images + NOISE * torch.randn(images.shape, generator=generator)


def _worst(differences: Sequence[Difference]) -> Difference:
    """The largest of each figure."""
    return replace(
        differences[0],
        largest=max(x.largest for x in differences),
        lost=max(x.lost for x in differences),
        mask_iou=max(differences, key=lambda x: x.mask_error).mask_iou,
    )


Results = list[ImageDetections] | tuple[Tensor, ...]


def _results(
    model: nn.Module,
    images: Tensor,
    metadata: dict[str, Any] | None,
    run: Callable[[Tensor], Sequence[Tensor] | Tensor] | None,
) -> Results:
    """What is found on images: by the model, or by what was exported from it."""
    if isinstance(model, WholeModel) and "boxes" in model.outputs:
        if run is None:
            return predict(model, images)
        return unpack(_many(run(images)), metadata or model.metadata, _size(images))
    with torch.no_grad():
        return _many((run or _eager(model))(images))


def _distance(expected: Results, actual: Results, images: Tensor) -> Difference:
    if isinstance(expected, list) and isinstance(actual, list):
        return _detections(expected, actual, _size(images))
    pairs: list[Any] = list(zip(expected, actual, strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(
                f"images of {tuple(images.shape)} give {tuple(b.shape)} where the model gives "
                f"{tuple(a.shape)}"
            )
    # Not Python's max, which passes over NaN.
    largest = torch.stack([_difference(a, b) for a, b in pairs]).max()
    return Difference(len(images), _size(images), largest.item())


def _eager(model: nn.Module) -> Callable[[Tensor], Sequence[Tensor] | Tensor]:
    return partial(segment, model) if isinstance(model, WholeModel) else model


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def other_sizes(size: tuple[int, int], smallest: int) -> list[tuple[int, int]]:
    """The traced size and three others: no multiple of anything, upright, and small."""
    height, width = size
    sizes = [
        (height, width),
        (height - 5, width + 3),
        (height + width // 3 + 1, width),
        (height // 2 + 1, width * 3 // 4),
    ]
    return [(max(h, smallest), max(w, smallest)) for h, w in sizes]


def _detections(
    expected: Sequence[ImageDetections], actual: Sequence[ImageDetections], size: tuple[int, int]
) -> Difference:
    """Differences of the pairs, each the nearest of the same class; both have the same images."""
    largest, lost, other_pixels, pixels, masks = 0.0, 0, 0, 0, False
    for mine, theirs in zip(expected, actual, strict=True):
        pairs = _pairs(mine, theirs)
        lost += len(mine.boxes) + len(theirs.boxes) - 2 * len(pairs)
        for a, b in pairs:
            box = (mine.boxes[a] - theirs.boxes[b]).abs().max().item() / max(size)
            score = (mine.scores[a] - theirs.scores[b]).abs().item()
            largest = max(largest, box, score)
            if mine.masks is not None and theirs.masks is not None:
                masks = True
                differing = int((mine.masks[a] ^ theirs.masks[b]).sum())
                other_pixels += max(differing - 1, 0)
                pixels += int((mine.masks[a] | theirs.masks[b]).sum())
    number = sum(len(x.boxes) for x in expected)
    iou = 1 - other_pixels / max(pixels, 1) if masks else None
    return Difference(len(expected), size, largest, number, lost, iou)


def _pairs(mine: ImageDetections, theirs: ImageDetections) -> list[tuple[int, int]]:
    """Places of detections of both that are the same, the nearest pairs first."""
    distance = torch.cdist(mine.boxes, theirs.boxes, p=torch.inf)
    distance = distance + (mine.scores[:, None] - theirs.scores).abs()
    distance[mine.labels[:, None] != theirs.labels] = torch.inf
    pairs = []
    while distance.numel() and distance.min() < 1:  # a pixel
        a, b = divmod(int(distance.argmin()), distance.shape[1])
        pairs.append((a, b))
        distance[a], distance[:, b] = torch.inf, torch.inf
    return pairs


def _difference(expected: Tensor, actual: Tensor) -> Tensor:
    return (expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12)


def _many(outputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

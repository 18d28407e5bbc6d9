"""Whether what was exported computes what the model does, at sizes it was not traced with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """How far two results for the same images lie apart.

    Attributes:
        batch: images.
        size: their height and width in pixels.
        largest: largest difference of two numbers, as a share of the output's largest
            number; the worst of all outputs.
    """

    batch: int
    size: tuple[int, int]
    largest: float

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.size[0]} x {self.size[1]}: {self.largest:.1e}"


def compare(
    model: nn.Module,
    run: Callable[[Tensor], Sequence[Tensor] | Tensor],
    sizes: Iterable[tuple[int, int]],
    batches: Sequence[int] = (1, 3),
    channels: int = 3,
) -> Iterator[Difference]:
    """Run both on the same random images, one size and batch after the other.

    Args:
        model: in eager mode; it is called in eval mode.
        run: what was exported.
        sizes: heights and widths in pixels.
        batches: numbers of images.
        channels: of the images.

    Raises:
        ValueError: if the outputs are not of the same number or shapes.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        for batch in batches:
            images = torch.randn(batch, channels, *size, generator=generator)
            with torch.no_grad():
                pairs = list(zip(_many(model(images)), _many(run(images)), strict=True))
            for own, other in pairs:
                if own.shape != other.shape:
                    raise ValueError(
                        f"images of {tuple(images.shape)} give {tuple(other.shape)} where the "
                        f"model gives {tuple(own.shape)}"
                    )
            yield Difference(batch, size, max(_difference(a, b) for a, b in pairs))


def other_sizes(size: tuple[int, int], smallest: int) -> list[tuple[int, int]]:
    """The traced size and three others: no multiple of anything, upright, and small."""
    height, width = size
    found = [
        (height, width),
        (height - 5, width + 3),
        (height + width // 3 + 1, width),
        (height // 2 + 1, width * 3 // 4),
    ]
    return [(max(h, smallest), max(w, smallest)) for h, w in found]


def _difference(own: Tensor, other: Tensor) -> float:
    return ((own - other).abs().max() / own.abs().max().clamp(min=1e-12)).item()


def _many(outputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

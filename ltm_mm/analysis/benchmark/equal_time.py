"""The plain model on a smaller image that takes as long as merging does.

Merging has to be better than that: making the image smaller is free to everyone.
"""

import time
from collections.abc import Callable

from .latency import Clock, interleave, ratios

Size = tuple[int, int]


def equal_time_size(
    size: Size,
    plain: Callable[[Size], object],
    target: Callable[[], object],
    clock: Clock = time.perf_counter,
    rounds: int = 3,
    step: int = 32,
) -> Size:
    """The largest image of about the same shape on which plain takes no longer than the target.

    Found by bisection. The machine's speed may drift meanwhile: plain and the target take turns
    at every size that is tried, and the median of the rounds' ratios decides.

    Args:
        size: height and width of the whole image in pixels.
        plain: one pass of the plain model on an image of a size; the first one at each size
            does not count. On a GPU it must end synchronised, and so must ``target``.
        target: one pass of the merging model on the whole image.
        clock: seconds so far.
        rounds: rounds that count at every size, >= 1; one more comes before them.
        step: pixels that height and width are multiples of.

    Returns:
        Height and width, no larger than ``size``; about ``step`` pixels per side where not
        even that takes so little time.
    """

    def fits(candidate: Size) -> bool:
        runs = {"plain": lambda: plain(candidate), "target": target}
        seconds = interleave(runs, rounds, warmup=1, clock=clock)
        return ratios(seconds["plain"], seconds["target"]).median <= 1

    sizes = smaller_sizes(size, step)
    low, high = 0, len(sizes)  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle
        else:
            high = middle
    return sizes[low]


def smaller_sizes(size: Size, step: int = 32) -> list[Size]:
    """Images of about a shape, growing up to it.

    Args:
        size: height and width in pixels.
        step: sides are the nearest multiples of it, except those of ``size`` itself.

    >>> smaller_sizes((64, 100))
    [(32, 32), (32, 64), (64, 96), (64, 100)]
    """
    longer = max(size)
    sizes = []
    for k in range(1, longer // step + 1):
        sides = (max(round(side * k * step / longer / step), 1) * step for side in size)
        height, width = (min(new, side) for new, side in zip(sides, size, strict=True))
        sizes.append((height, width))
    return sizes if size in sizes else [*sizes, size]

"""The honest rival of merging: the plain model on an image shrunk to the same latency (ours)."""

from collections.abc import Callable

STEP = 32  # pixels; every stage of the networks here halves whole numbers of them


def shrunk_size(
    size: tuple[int, int], seconds: Callable[[tuple[int, int]], float], budget: float
) -> tuple[int, int]:
    """The largest image of about the same shape that the plain model is done with in time.

    Args:
        size: height and width of the whole image in pixels.
        seconds: time of a pass on an image of a size; called a few times.
        budget: seconds that it may take.

    Returns:
        Height and width, multiples of 32 (at least 32), no larger than ``size``.
    """
    sizes = _sizes(size)
    low, high = 0, len(sizes)  # sizes[low] fits, sizes[high] does not; the smallest always does
    while high - low > 1:
        middle = (low + high) // 2
        if seconds(sizes[middle]) <= budget:
            low = middle
        else:
            high = middle
    return sizes[low]


def _sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Images of about a shape, growing: each side the nearest multiple of ``STEP``."""
    longer = max(size)
    shares = [k * STEP / longer for k in range(1, longer // STEP + 1)]
    grown = [(_near(size[0] * share), _near(size[1] * share)) for share in shares]
    return [(min(h, size[0]), min(w, size[1])) for h, w in grown]


def _near(pixels: float) -> int:
    return max(round(pixels / STEP), 1) * STEP

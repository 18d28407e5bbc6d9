"""What is wrong with the 'segmentation' of a COCO annotation.

pycocotools says nothing about a run-length code of fewer pixels than its image: the rest of the
mask is then whatever the memory held.
"""

import numpy as np

NO_MASK = "have no 'segmentation'"
BAD_MASK = (
    "have a 'segmentation' that is neither a list of polygons [[x, y, x, y, x, y, ...], ...] of "
    "three points or more, nor a run-length code of the image's height and width"
)
EMPTY_MASK = "have a run-length code without a pixel as 'segmentation'"
RUN_LENGTH = "have a run-length code as 'segmentation'"  # no fault of its own
COORDINATE_LIMIT = 1e8  # pixels, of all points together
MASK_FAULTS = (NO_MASK, BAD_MASK, EMPTY_MASK)


def mask_fault(mask: object, height: float, width: float) -> str | None:
    """Which fault a mask has, None if it has none.

    Args:
        mask: polygons in pixels, or a run-length code of ``counts`` (numbers, or COCO's text) and
            ``size`` (height, width).
        height, width: of its image.
    """
    if not mask:
        return NO_MASK
    if isinstance(mask, list):
        return None if all(map(_is_polygon, mask)) else BAD_MASK
    code = mask if isinstance(mask, dict) else {}
    counts = code.get("counts")
    if not isinstance(counts, (list, str)) or code.get("size") != [height, width]:
        return BAD_MASK
    runs = _decoded(counts) if isinstance(counts, str) else counts
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != height * width:
        return BAD_MASK
    return None if sum(runs[1::2]) else EMPTY_MASK


def _is_polygon(points: object) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    try:  # of a NaN or a huge number pycocotools makes an outline that takes all the memory
        return abs(sum(points)) < COORDINATE_LIMIT
    except TypeError:  # text, or points in pairs
        return False


def _decoded(text: str) -> list[int]:
    """Lengths of the runs in COCO's text; none if it is no such text.

    As pycocotools' ``rleFrString``: a character holds five bits, lowest first, and whether more
    follow; from the fourth run on, what is written is the difference from the run before the last.
    """
    parts = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(parts < 32)  # of each number's characters
    if not text or parts.min() < 0 or parts.max() > 63 or parts[-1] >= 32:
        return []
    sizes = np.diff(ends, prepend=-1)
    starts = ends - sizes + 1
    shifts = 5 * (np.arange(len(parts)) - np.repeat(starts, sizes))
    runs = np.add.reduceat((parts & 31) << shifts, starts)
    runs -= (parts[ends] & 16) << (shifts[ends] + 1)  # the sign
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs.tolist()

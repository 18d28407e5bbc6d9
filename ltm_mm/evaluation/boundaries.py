"""How well the outlines of two masks agree.

Sources: boundary IoU (Cheng et al., CVPR 2021, section 4); boundary F as in DAVIS (Perazzi et
al., CVPR 2016, section 4), after Csurka et al. (BMVC 2013).
"""

import cv2
import numpy as np


def inner_boundary(mask: np.ndarray, width: int, image_edge: bool = True) -> np.ndarray:
    """Pixels of a mask within ``width`` of its outline, measured along rows, columns, diagonals.

    Args:
        mask: ``(H, W)`` bool.
        width: pixels, >= 1.
        image_edge: whether the image's edge counts as outline where the mask touches it.

    Returns:
        ``(H, W)`` bool.
    """
    kernel = np.ones((3, 3), np.uint8)
    padded = cv2.copyMakeBorder(
        mask.astype(np.uint8),
        *(width,) * 4,
        cv2.BORDER_CONSTANT if image_edge else cv2.BORDER_REPLICATE,
        value=0,
    )
    core = cv2.erode(padded, kernel, iterations=width)[width:-width, width:-width]
    return mask & ~core.astype(bool)


def boundary_width(height: int, width: int, ratio: float) -> int:
    """Pixels that are ``ratio`` of the image's diagonal, at least 1."""
    return max(round(ratio * float(np.hypot(height, width))), 1)


def boundary_iou(one: np.ndarray, other: np.ndarray, width: int) -> float:
    """Intersection over union of two masks' inner boundaries; 1 where both have none.

    Args:
        one, other: ``(H, W)`` bool.
        width: of the boundaries in pixels, >= 1.
    """
    a, b = inner_boundary(one, width), inner_boundary(other, width)
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def boundary_hits(
    predicted: np.ndarray, truth: np.ndarray, tolerance: int, valid: np.ndarray | None = None
) -> np.ndarray:
    """How much of each outline the other one accounts for.

    Args:
        predicted, truth: ``(H, W)`` bool.
        tolerance: how far apart matching outline pixels may lie, in pixels, >= 0.
        valid: ``(H, W)`` bool; pixels outside it are ignored. None: all.

    Returns:
        Four counts: pixels of the predicted outline, those near the true one, pixels of the
        true outline, those near the predicted one.
    """
    outlines = [inner_boundary(m, 1, image_edge=False) for m in (predicted, truth)]
    if valid is not None:
        outlines = [outline & valid for outline in outlines]
    side = np.arange(-tolerance, tolerance + 1)
    disk = (side[:, None] ** 2 + side**2 <= tolerance**2).astype(np.uint8)
    near = [cv2.dilate(o.astype(np.uint8), disk).astype(bool) for o in outlines]
    p, t = outlines
    return np.array([p.sum(), (p & near[1]).sum(), t.sum(), (t & near[0]).sum()])

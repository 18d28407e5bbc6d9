"""One program for every image size: ``torch.export`` with a dynamic batch, height and width.

A size that is fixed while tracing goes unseen until another size comes: so went Swin's
shift mask, computed in Python from the traced size. Here nothing is computed from a size
outside the graph. What is asked about a size while tracing (is it 1? is this packed
already?) becomes an assertion in the program and not an assumption about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from .pooling import exchange_pooling

SMALLEST = 33  # pixels: below, EfficientViT's last grid is one token, which timm treats apart


def export_program(model: nn.Module, size: tuple[int, int], channels: int = 3) -> ExportedProgram:
    """Export a network of one tensor of images.

    Args:
        model: takes images ``(B, channels, H, W)``; on the CPU. A copy of it is traced,
            in eval mode.
        size: height and width that it is traced with, >= ``SMALLEST``; any other will do.
        channels: of the images.

    Returns:
        The program, for any B >= 1 and any H and W >= ``SMALLEST``.

    Raises:
        ValueError: if the size is too small.
    """
    if min(size) < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} x {SMALLEST} pixels, got {size}")
    model = exchange_pooling(deepcopy(model))
    model.eval()  # not chained: mmdet's Swin returns None
    with no_assumptions():
        return torch.export.export(
            model,
            (torch.zeros(2, channels, *size),),
            dynamic_shapes=(dynamic_shapes(),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def dynamic_shapes() -> dict[int, Dim]:
    """The dimensions of the images that may change, by name."""
    height, width = (Dim(name, min=SMALLEST) for name in ("height", "width"))
    return {0: Dim("batch"), 2: height, 3: width}


@contextmanager
def no_assumptions() -> Iterator[None]:
    """While a graph is made or rewritten: no gradients, and no path of its own for sizes of 1."""
    from torch.fx.experimental import _config as shapes

    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):
        yield

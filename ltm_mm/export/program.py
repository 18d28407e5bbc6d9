"""One program for every image size: ``torch.export`` with a dynamic batch, height and width.

A size that is fixed while tracing goes unseen until another size comes: so went Swin's
shift mask, computed in Python from the traced size. Here nothing is computed from a size
outside the graph. What is asked about a size while tracing (is it 1? is this packed
already?) becomes an assertion in the program and not an assumption about it.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .nms import portable
from .pooling import antialiased, replace_pooling

METADATA_FILE = "ltm_mm.json"  # in a .pt2 file
SMALLEST = 33  # pixels: below, EfficientViT's last grid is one token, which timm treats apart


def export_program(
    model: nn.Module,
    size: tuple[int, int],
    channels: int = 3,
    smallest: int = SMALLEST,
    dynamic_size: bool = True,
) -> ExportedProgram:
    """Export a network of one tensor of images.

    Args:
        model: takes images ``(B, channels, H, W)``; on the CPU. A copy of it is traced,
            in eval mode.
        size: height and width that it is traced with; any other will do.
        channels: of the images.
        smallest: height and width.
        dynamic_size: whether height and width are left open, or fixed.

    Returns:
        The program, for any B >= 1 and any H and W from the smallest on.

    Raises:
        ValueError: if the size is too small.
    """
    if min(size) < smallest:
        raise ValueError(f"size must be at least {smallest} x {smallest} pixels, got {size}")
    # Without gradients: PyTorch loses track of numbers of boxes where it keeps them.
    model = replace_pooling(deepcopy(model)).requires_grad_(False)
    model.eval()  # not chained: mmdet's Swin returns None
    with no_assumptions(), _portable():
        program = torch.export.export(
            model,
            (torch.zeros(2, channels, *size),),
            dynamic_shapes=(dynamic_shapes(smallest, dynamic_size),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_assertions(program)
    return program


def save_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program as a ``.pt2`` file, which needs PyTorch and torchvision only.

    Args:
        program: of :func:`export_program`.
        path: the file.
        metadata: what the file says of itself, see :mod:`.metadata`.
    """
    forget_pending(program)
    with no_assumptions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions({torch.ops.ltm_mm.kept_boxes.default: portable})
    _drop_assertions(program)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def forget_pending(program: ExportedProgram) -> None:
    """Let a program be rewritten again: rewriting leaves numbers of boxes that nothing returned."""
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            mode.shape_env.pending_fresh_unbacked_symbols.clear()
            return


def _drop_assertions(program: ExportedProgram) -> None:
    """Let a map have a single pixel.

    Tracing notes that no map is that small, for the sake of how its memory is laid out; what
    is computed holds for one pixel too.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and re.search(
            r"expression (Ne\(.*, 1\)|1 < .*) on node", str(node.args[1])
        ):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    if guards := getattr(program, "_guards_code", None):  # likewise of the batch; newer PyTorch
        program._guards_code = [g for g in guards if ".size()[0] " not in g]


def dynamic_shapes(smallest: int = SMALLEST, dynamic_size: bool = True) -> dict[int, Dim]:
    """The dimensions of the images that may change, by name."""
    if not dynamic_size:
        return {0: Dim("batch")}
    height, width = (Dim(name, min=smallest) for name in ("height", "width"))
    return {0: Dim("batch"), 2: height, 3: width}


@contextmanager
def no_assumptions() -> Iterator[None]:
    """While a graph is made or rewritten: no gradients, and no path of its own for sizes of 1."""
    from torch.fx.experimental import _config

    shapes: Any = _config  # a module that is given its `patch` when imported
    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):
        yield


@contextmanager
def _portable() -> Iterator[None]:
    """While a graph is made, two functions are what every size and every runtime can follow.

    FPN's max pooling of single pixels is what it is: a slice. Pooling asks whether the size is
    even, and the answer would hold for the traced one only. For antialiasing see :mod:`.pooling`.
    """
    pool: Callable[..., Tensor] = F.max_pool2d
    resize: Callable[..., Tensor] = F.interpolate

    def sliced(x: Tensor, kernel_size: int, stride: int | None = None, *args: Any) -> Tensor:
        if kernel_size == 1 and stride and not args:
            return x[..., ::stride, ::stride]
        return pool(x, kernel_size, stride, *args)

    def resized(x: Tensor, size: Sequence[int] | None = None, *args: Any, **options: Any) -> Tensor:
        how = [options.get(key) for key in ("mode", "antialias", "align_corners")]
        if how in (["bicubic", True, None], ["bicubic", True, False]) and size is not None:
            return antialiased(x, (size[0], size[1]))
        return resize(x, size, *args, **options)

    with patch.object(F, "max_pool2d", sliced), patch.object(F, "interpolate", resized):
        yield

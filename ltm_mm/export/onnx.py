"""An exported program as an ONNX file."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch.export import ExportedProgram

from .files import INSTALL
from .nms import onnx_kept_boxes
from .program import dynamic_shapes, no_assumptions


def save_onnx(
    program: ExportedProgram, path: Path, outputs: Sequence[str], about: Mapping[str, str]
) -> None:
    """Write a program of images as ONNX.

    Args:
        program: of :func:`.program.export_program`.
        path: the file; weights of more than 2 GB go to a second one beside it.
        outputs: names of the results, in their order; the input is called ``image``.
        about: what the file says of itself, see :mod:`.about`.

    Raises:
        ImportError: if onnx or onnxscript is missing; says how to get them.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--format onnx needs onnx and onnxscript: {INSTALL}") from error
    with no_assumptions(), _silence():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=(dynamic_shapes(),),
            custom_translation_table={
                torch.ops.aten.sort.stable: _stable_sort,
                torch.ops.ltm_mm.kept_boxes.default: onnx_kept_boxes,
            },
            verbose=False,
        )
    written.model.metadata_props.update(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save(str(path))


@contextmanager
def _silence() -> Iterator[None]:
    """No word of what the exporter folds and what it does not."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _stable_sort(
    x: object, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[object, object]:
    """``torch.sort(stable=True)``, which PyTorch's exporter lacks; TopK puts equals in order."""
    from onnxscript import opset18 as op

    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

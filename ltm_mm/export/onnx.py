"""An exported program as an ONNX file, and ONNX files run on the CPU."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .program import dynamic_shapes, no_assumptions

INSTALL = "pip install 'ltm_mm[export]'"


def save_onnx(program: ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Write a program of images as ONNX.

    Args:
        program: of :func:`.program.export_program`.
        path: the file; weights of more than 2 GB go to a second one beside it.
        outputs: names of the results, in their order; the input is called ``image``.

    Raises:
        ImportError: if onnx or onnxscript is missing; says how to get them.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--format onnx needs onnx and onnxscript: {INSTALL}") from error
    with no_assumptions(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=(dynamic_shapes(),),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save(str(path))


def _stable_sort(
    x: object, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[object, object]:
    """``torch.sort(stable=True)``, which PyTorch's exporter lacks; TopK puts equals in order."""
    from onnxscript import opset18 as op

    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def run_onnx(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What an ONNX file computes, run by onnxruntime on the CPU.

    Raises:
        ImportError: if onnxruntime is missing; says how to get it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"--check of ONNX needs onnxruntime: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(out) for out in session.run(None, {name: images.numpy()}))

    return run

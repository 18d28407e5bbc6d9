"""An exported program as an ONNX file."""

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from .files import import_package
from .nms import onnx_kept_boxes
from .program import dynamic_shapes, forget_pending, no_assumptions

if TYPE_CHECKING:
    from onnxscript import ir


def save_onnx(
    program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a program of images as ONNX.

    Args:
        program: of :func:`.program.export_program`.
        path: the file; weights of more than 2 GB go to a second one beside it.
        outputs: names of the results, in their order; the input is called ``image``.
        metadata: what the file says of itself, see :mod:`.metadata`.

    Raises:
        ImportError: if onnx or onnxscript is missing; says how to get them.
    """
    require_onnx()
    forget_pending(program)
    with no_assumptions(), _silence():
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=(dynamic_shapes(dynamic_size=_is_open(program)),),
            custom_translation_table={torch.ops.ltm_mm.kept_boxes.default: onnx_kept_boxes},
            optimize=False,
            verbose=False,
        )
    _name_by_module(written.model.graph)
    with _silence():
        _simplify(written.model)
    written.model.graph.metadata_props.clear()
    written.model.metadata_props.update(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save(str(path))


def require_onnx() -> None:
    """Raise an ImportError if onnx or onnxscript is missing; it says how to get them."""
    for name in ("onnx", "onnxscript"):
        import_package(name, "writing ONNX", "export")


def _name_by_module(graph: "ir.Graph") -> None:
    """Name what is computed by the module that does it: ``backbone.stages.0.norm/mul_3``.

    A profile of any runtime can then be read, see :mod:`.profile`. What PyTorch writes beside it
    goes: the lines of source code have the paths of the machine that exported.
    """
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [s for s in scopes[:-1] if s and not s.startswith("_")]
        place = modules[-1].removeprefix("model.") if modules else ""
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.name = f"{place}/{value.name}"


def _simplify(model: "ir.Model") -> None:
    """Fold what is constant and join what is equal.

    PyTorch's ``optimize=True`` does this and some rewriting which takes minutes, and which the
    runtimes do themselves.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.fold_constants(model, onnx_shape_inference=True)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    ):
        step(model)
    for node in model.graph:  # folding makes new ones
        node.name = node.outputs[0].name


def _is_open(program: ExportedProgram) -> bool:
    """Whether a program of images takes any height and width."""
    name = program.graph_signature.user_inputs[0]
    image = next(node for node in program.graph.nodes if node.name == name)
    return not isinstance(image.meta["val"].shape[2], int)


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

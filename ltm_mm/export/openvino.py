"""OpenVINO's files, and their 8-bit form by NNCF's post-training quantisation."""

import json
import tempfile
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.export import ExportedProgram

from .files import CHECKSUM, import_package
from .onnx import save_onnx


def save_openvino(
    program: ExportedProgram,
    path: Path,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor] | None = None,
) -> None:
    """Write a program as OpenVINO's ``.xml`` and ``.bin``, by way of ONNX.

    Args:
        program, outputs, metadata: see :func:`.onnx.save_onnx`.
        path: the ``.xml`` file.
        calibration: images ``(1, 3, H, W)``, normalised, on which it is quantised to 8 bits;
            None: it stays at 32.

    Raises:
        ImportError: if openvino or nncf is missing; says how to get it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        save_onnx(program, file, outputs, metadata)
        convert_onnx(file, path, metadata, calibration)


def convert_onnx(
    file: Path,
    path: Path,
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor] | None = None,
) -> None:
    """Write an ONNX file of :func:`.onnx.save_onnx` as OpenVINO's.

    Args:
        file: the ONNX file.
        path, metadata, calibration: see :func:`save_openvino`.

    Raises:
        ImportError: if openvino or nncf is missing; says how to get it.
    """
    openvino = import_package("openvino", "--format openvino")
    nncf = None if calibration is None else import_package("nncf", "--int8")
    model = openvino.convert_model(file)
    _step_by_index(model)
    if nncf is not None and calibration is not None:
        print(f"quantising with {len(calibration)} images ...", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # masked attention has infinities, which it averages
            model = nncf.quantize(
                model,
                nncf.Dataset(calibration, lambda image: image.numpy()),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
            )
    facts = {**metadata, "precision": json.dumps("fp32" if nncf is None else "int8")}
    model.set_rt_info(json.dumps(facts), ["ltm_mm", "about"])
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # the second time with the checksum of what the first one wrote
        # Half precision, the default, would make another model of it.
        openvino.save_model(model, path, compress_to_fp16=False)
        model.set_rt_info(str(zlib.crc32(path.with_suffix(".bin").read_bytes())), CHECKSUM)


def _step_by_index(model: Any) -> None:
    """Take every second token by its place.

    OpenVINO (2026.4) believes that a slice in steps, of a dimension of any length, is as long as
    the dimension, and later puts the one length in the place of the other.
    """
    from openvino import opset15 as ops

    for node in model.get_ops():
        if node.get_type_name() != "Slice" or not _is_constant(node, 1, 3, 4):
            continue
        (start, *_), (step, *others), (axis, *_) = (
            node.input_value(index).get_node().get_vector().tolist() for index in (1, 3, 4)
        )
        if others or step < 2 or node.get_output_partial_shape(0)[axis].is_static:
            continue
        length = ops.gather(ops.shape_of(node.input_value(0)), _constant(axis), _constant(0))
        stop = ops.squeeze(node.input_value(2), _constant(0))
        indices = ops.range(_constant(start), ops.minimum(stop, length), _constant(step), "i64")
        taken = ops.gather(node.input_value(0), indices, _constant(axis))
        node.output(0).replace(taken.output(0))
    model.validate_nodes_and_infer_types()


def _is_constant(node: Any, *inputs: int) -> bool:
    sources = (node.input_value(index).get_node() for index in inputs)
    return all(source.get_type_name() == "Constant" for source in sources)


def _constant(value: int) -> object:
    from openvino import opset15 as ops

    return ops.constant(value, dtype=np.int64)

"""Exported files, opened and run on the CPU: ONNX, OpenVINO and torch.export."""

import json
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  (its operators stand in .pt2 files)
from torch import Tensor

from ..errors import UserError
from .metadata import read_metadata
from .program import METADATA_FILE

if TYPE_CHECKING:
    import onnxruntime

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
CHECKSUM = ["ltm_mm", "bin_crc32"]  # in an .xml
RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch.export"}


class ExportedFile(NamedTuple):
    """A file, ready to run.

    Attributes:
        run: images ``(B, 3, H, W)``, normalised, to the results in their order; too small ones
            are a UserError.
        metadata: what the file says of itself, see :mod:`.metadata`; empty for another program's
            file.
        runtime: what runs it.
    """

    run: Callable[[Tensor], tuple[Tensor, ...]]
    metadata: dict[str, Any]
    runtime: str


def is_exported(path: str | Path | None) -> bool:
    """Whether a file's name is that of an exported model."""
    return path is not None and Path(path).suffix in RUNTIMES


def open_file(path: str | Path, threads: int | None = None, bf16: bool = False) -> ExportedFile:
    """Open an exported file.

    Args:
        path: ``.onnx``, ``.xml`` (its ``.bin`` beside it) or ``.pt2``.
        threads: of the CPU; None: as many as PyTorch uses.
        bf16: compute in bfloat16 where the processor has it; OpenVINO only.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is missing; says how to get it.
        ValueError: the file is damaged, or of none of these formats.
        UserError: ``bf16`` for a file of another runtime.
    """
    path = Path(path)
    if bf16 and path.suffix != ".xml":
        raise UserError(f"--bf16 is an option of OpenVINO, and {path} is no .xml file")
    openers = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_program}
    if path.suffix not in openers:
        raise ValueError(f"{path} is none of {', '.join(openers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: python tools/export.py writes such files")
    options = {"bf16": True} if bf16 else {}
    run, entries = openers[path.suffix](path, threads or torch.get_num_threads(), **options)
    facts = read_metadata(entries)

    def checked(images: Tensor) -> tuple[Tensor, ...]:
        smallest = int(facts.get("smallest", 1))
        if min(images.shape[2:]) < smallest:
            raise UserError(
                f"{path} takes images of {smallest} x {smallest} pixels and more, got "
                f"{images.shape[2]} x {images.shape[3]}: resize them in the config's test pipeline"
            )
        return run(images)

    return ExportedFile(checked, facts, RUNTIMES[path.suffix])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if "warnings above" in reason:  # of PyTorch, which are tracebacks
            reason = "it holds no program"
        raise ValueError(f"{path} is damaged, or no such file: {reason}") from error


def _open_onnx(path: Path, threads: int) -> tuple[Callable, dict[str, str]]:
    onnxruntime = import_onnxruntime(f"running {path}")
    with _readable(path):
        session = onnxruntime.InferenceSession(
            str(path), onnx_options(threads), providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(out) for out in session.run(None, {name: images.numpy()}))

    return run, dict(session.get_modelmeta().custom_metadata_map)


def onnx_options(threads: int) -> "onnxruntime.SessionOptions":
    """How files are run here: on so many threads, errors only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return options


def _open_openvino(path: Path, threads: int, bf16: bool = False) -> tuple[Callable, dict[str, str]]:
    openvino = import_package("openvino", f"running {path}")
    with _readable(path):
        if b"<net" not in path.read_bytes()[:1000]:  # OpenVINO would try all that it can read
            raise ValueError("it holds no <net>")
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise ValueError(f"its weights are not beside it, in {weights.name}")
        model = openvino.Core().read_model(path)
        if model.has_rt_info(CHECKSUM):
            written = int(model.get_rt_info(CHECKSUM).astype(str))
            if zlib.crc32(weights.read_bytes()) != written:
                raise ValueError(f"{weights.name} is damaged, or of another export")
    entries = {}
    if model.has_rt_info(["ltm_mm", "about"]):
        entries = json.loads(model.get_rt_info(["ltm_mm", "about"]).astype(str))
    if bf16 and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("--bf16: this processor has no bf16, and OpenVINO would compute in fp32")
    compiled = openvino.Core().compile_model(model, "CPU", openvino_settings(threads, bf16))

    def run(images: Tensor) -> tuple[Tensor, ...]:
        results = compiled(images.numpy())
        return tuple(torch.from_numpy(np.array(results[out])) for out in compiled.outputs)

    return run, entries


def openvino_settings(threads: int, bf16: bool) -> dict[str, object]:
    """How files are run here; processors with bf16 would use it without being asked to."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }


def _open_program(path: Path, threads: int) -> tuple[Callable, dict[str, str]]:
    extra = {METADATA_FILE: ""}
    with _readable(path), _no_tracebacks():
        module = torch.export.load(path, extra_files=extra).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs = module(images)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return run, json.loads(extra[METADATA_FILE] or "{}")


@contextmanager
def _no_tracebacks() -> Iterator[None]:
    """PyTorch logs why a file is not of its newest form, and then tries older ones."""
    log = logging.getLogger("torch.export")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def import_package(name: str, what: str, extra: str = "openvino") -> ModuleType:
    """A package that only exports need.

    Args:
        name: of the package.
        what: needs it, for a message.
        extra: of ours that installs it.

    Raises:
        ImportError: if it is missing; says how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs {name}: pip install 'ltm_mm[{extra}]'") from error


def import_onnxruntime(what: str) -> ModuleType:
    """The package, see :func:`import_package`."""
    return import_package("onnxruntime", what, "export")

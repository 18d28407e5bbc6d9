"""Exported files timed beside the models that they came from (ours)."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..analysis.latency import Spread, ratios
from ..analysis.random_data import channels_of
from ..analysis.report import markdown_line
from ..engine.errors import UserError
from .files import INSTALL, import_openvino, open_file
from .heads import WholeModel, whole_model
from .onnx import save_onnx
from .openvino import import_nncf, save_openvino
from .program import export_program

RUNTIME_CHOICES = ("onnxruntime", "openvino", "openvino-int8")
CALIBRATION = 8  # random images: they decide about accuracy, not about time


def file_runs(
    models: Mapping[str, nn.Module],
    runtimes: Sequence[str],
    size: tuple[int, int],
    batch: int,
    folder: str,
) -> dict[str, Callable[[], object]]:
    """Export models and make ready to run the files.

    Args:
        models: name -> backbone, or mmdet's or mmseg's whole model.
        runtimes: some of ``RUNTIME_CHOICES``.
        size: height and width of the images in pixels.
        batch: images per pass.
        folder: for the files.

    Returns:
        Name and runtime -> one pass on random images.

    Raises:
        UserError: if a model cannot be exported whole.
        ImportError: if a runtime is missing; says how to get it.
    """
    _require(runtimes)
    channels = channels_of(next(iter(models.values())))
    images = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))
    runs = {}
    for index, (name, model) in enumerate(models.items()):
        network, outputs = _network(model)
        print(f"exporting {name}, which takes a minute or two ...", flush=True)
        program = export_program(network, size, channels)
        for runtime in runtimes:
            path = Path(folder, f"{index}-{runtime}")
            if runtime == "onnxruntime":
                path = path.with_suffix(".onnx")
                save_onnx(program, path, outputs, {})
            else:
                path = path.with_suffix(".xml")
                quantised = runtime.endswith("int8")
                calibration = torch.randn(CALIBRATION, 1, channels, *size) if quantised else None
                save_openvino(program, path, outputs, {}, calibration)
            runs[f"{name}, {runtime}"] = _bound(open_file(path).run, images)
    return runs


def _bound(run: Callable, images: torch.Tensor) -> Callable[[], object]:
    return lambda: run(images)


def _network(model: nn.Module) -> tuple[nn.Module, list[str]]:
    if not hasattr(model, "data_preprocessor"):
        maps = model(torch.zeros(1, channels_of(model), 64, 64))
        return model, [f"stage{i}" for i in range(len(maps))]
    try:
        whole: WholeModel = whole_model(model)
    except ValueError as error:
        raise UserError(f"--runtime: {error}") from error
    return whole, list(whole.outputs)


def _require(runtimes: Sequence[str]) -> None:
    """Say what is missing before minutes of tracing."""
    for runtime in runtimes:
        if runtime.startswith("openvino"):
            import_openvino(f"--runtime {runtime}")
        if runtime.endswith("int8"):
            import_nncf()
        if runtime == "onnxruntime":
            try:
                import onnxruntime  # noqa: F401
            except ImportError as error:
                raise ImportError(f"--runtime onnxruntime needs it: {INSTALL}") from error


def runtime_table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds and speed-up over the first, one line each."""
    head = ["model, runtime", "forward ms (IQR)", "speed-up"]
    lines = [markdown_line(head), markdown_line(["---"] * len(head))]
    first = next(iter(seconds.values()))
    for name, own in seconds.items():
        spread = Spread.of(own)
        times = f"{spread.median * 1e3:.1f} ({(spread.high - spread.low) * 1e3:.1f})"
        lines.append(markdown_line([name, times, f"{ratios(first, own).median:.2f}x"]))
    return "\n".join(lines)


def measure_files(
    time_runs: Callable[[Mapping[str, Callable]], dict[str, list[float]]],
    models: Mapping[str, nn.Module],
    runtimes: Sequence[str],
    size: tuple[int, int],
    batch: int,
) -> dict[str, list[float]]:
    """Export, time in turn with the models in eager mode, and print the table.

    Args:
        time_runs: times the models and further runs in turn.
        models, runtimes, size, batch: see :func:`file_runs`.

    Returns:
        Name -> seconds, one per round.
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = time_runs(file_runs(models, runtimes, size, batch, folder))
    print(f"\nbatch {batch}, {size[0]} x {size[1]} pixels\n\n{runtime_table(seconds)}", flush=True)
    return seconds

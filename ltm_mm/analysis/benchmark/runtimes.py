"""Exported files timed beside the models that they came from."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ...engine.build import channels_of
from ...errors import UserError
from ...export.files import import_onnxruntime, import_package, open_file
from ...export.heads import WholeModel, whole_model
from ...export.onnx import save_onnx
from ...export.openvino import convert_onnx
from ...export.profile import file_part_times
from ...export.program import export_program
from .bench import Bench
from .latency import Spread, ratios
from .parts import parts_of
from .report import BenchmarkRow, markdown_table, parts_table

CALIBRATION = 2  # random images: they decide about accuracy, not about time


def measure_files(
    bench: Bench, exported: Sequence[str], runtimes: Sequence[str], batch: int, rounds: int
) -> list[BenchmarkRow]:
    """Export models, time the files in turn with the models themselves, and print two tables.

    Args:
        bench: with the models.
        exported: names of those to export: backbones, or mmdet's or mmseg's whole models.
        runtimes: 'onnxruntime', 'openvino', 'openvino-bf16' or 'openvino-int8'.
        batch: images per pass.
        rounds: rounds that count.

    Returns:
        A row per model and per file; memory is not measured.

    Raises:
        UserError: if a model cannot be exported whole.
        ImportError: if a runtime is missing; says how to get it.
    """
    _require(runtimes)
    threads, size = torch.get_num_threads(), bench.size
    channels = channels_of(next(iter(bench.models.values())))
    images = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {}
        profiles: dict[str, Callable[[], dict[str, float]]] = {}
        for index, name in enumerate(tqdm(exported, desc="exporting", unit="model", leave=False)):
            model = bench.models[name]
            part_names = parts_of(model)
            files = _files(model, runtimes, images[:1], Path(folder, str(index)))
            for runtime, path in files.items():
                bf16 = runtime.endswith("bf16")
                key = f"{name}, {runtime}"
                runs[key] = partial(open_file(path, threads, bf16).run, images)
                profiles[key] = partial(file_part_times, path, images, part_names, threads, bf16)
                rows[key] = name
        seconds = bench.time_with(batch, rounds, runs)
        measured = []
        for key, taken in seconds.items():
            name = rows.get(key, key.rpartition(", ")[0])
            parts = profiles[key]() if key in profiles else bench.parts(name, batch)
            count = sum(p.numel() for p in bench.models[name].parameters())
            measured.append(BenchmarkRow(key, batch, count, bench.macs[name], taken, parts, 0))
    print(f"\nbatch {batch}, {size[0]} x {size[1]} pixels\n\n{runtime_table(measured)}\n")
    print(parts_table({row.name: row.parts for row in measured}), flush=True)
    return measured


def _files(
    model: nn.Module, runtimes: Sequence[str], image: torch.Tensor, folder: Path
) -> dict[str, Path]:
    """Runtime -> its file, written into the folder."""
    network, outputs = _network(model)
    _fill(network, image)
    channels, *size = image.shape[1:]
    onnx = folder / "onnxruntime.onnx"
    save_onnx(export_program(network, (size[0], size[1]), channels), onnx, outputs, {})
    plain, quantised = folder / "openvino.xml", folder / "int8.xml"
    if any(runtime in ("openvino", "openvino-bf16") for runtime in runtimes):
        convert_onnx(onnx, plain, {})
    if "openvino-int8" in runtimes:
        convert_onnx(onnx, quantised, {}, list(torch.randn(CALIBRATION, 1, channels, *size)))
    files = {"onnxruntime": onnx, "openvino-int8": quantised}
    return {runtime: files.get(runtime, plain) for runtime in runtimes}


def _network(model: nn.Module) -> tuple[nn.Module, list[str]]:
    if not hasattr(model, "data_preprocessor"):
        maps = model(torch.zeros(1, channels_of(model), 64, 64))
        return model, [f"stage{i}" for i in range(len(maps))]
    try:
        whole: WholeModel = whole_model(model)
    except ValueError as error:
        raise UserError(f"--runtime: {error}") from error
    return whole, list(whole.outputs)


def _fill(network: nn.Module, image: torch.Tensor) -> None:
    """Lower a detector's threshold until it finds as much as it may, as in a crowded image.

    Random weights would find nothing, and what is done with detections would take no time.
    """
    parts = (getattr(getattr(network, "model", None), n, None) for n in ("roi_head", "bbox_head"))
    options = next((part.test_cfg for part in parts if part is not None), None) or {}
    if "score_thr" not in options:
        return
    options["score_thr"] = 0.0
    with torch.no_grad():
        lowest = float(network(image)[1].min())
    options["score_thr"] = 0.999 * lowest


def _require(runtimes: Sequence[str]) -> None:
    """Say what is missing before minutes of tracing."""
    for runtime in runtimes:
        if runtime.startswith("openvino"):
            import_package("openvino", f"--runtime {runtime}")
        if runtime.endswith("int8"):
            import_package("nncf", "--int8")
        if runtime == "onnxruntime":
            import_onnxruntime(f"--runtime {runtime}")


def runtime_table(rows: Sequence[BenchmarkRow]) -> str:
    """Milliseconds and speed-up over the first, one line each."""
    head = ["model, runtime", "forward ms (IQR)", "speed-up"]
    lines = []
    for row in rows:
        spread = Spread.of(row.forward)
        times = f"{spread.median * 1e3:.1f} ({(spread.high - spread.low) * 1e3:.1f})"
        ratio = ratios(rows[0].forward, row.forward).median
        lines.append([row.name, times, f"{ratio:.2f}x"])
    return markdown_table(head, lines)

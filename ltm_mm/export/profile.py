"""Where the time of an exported file goes, by the parts of the model that it came from.

What is computed has the name of its module in the file, see :mod:`.onnx`, and each runtime has
a profiler of its own, which knows the names.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from .files import import_package, onnx_options, openvino_settings

PASSES = 3  # after two that are not counted


def file_part_times(
    path: Path, images: Tensor, parts: Mapping[str, str], threads: int, bf16: bool = False
) -> dict[str, float]:
    """Seconds of one pass by part.

    Args:
        path: ``.onnx`` or ``.xml``.
        images: ``(B, 3, H, W)``.
        parts: of the model's modules by name, see :func:`ltm_mm.analysis.benchmark.parts.parts_of`.
        threads, bf16: see :func:`.files.open_file`.

    Returns:
        Part -> seconds, the mean of a few passes. Operators that a runtime adds, such as
        copies to another layout, are charged to the module whose results they take.
    """
    if path.suffix == ".onnx":
        spans = _onnx_spans(path, images, threads)
    else:
        spans = _openvino_spans(path, images, threads, bf16)
    seconds_of: dict[str, float] = defaultdict(float)
    for name, seconds in spans:
        seconds_of[_part(name, parts)] += seconds / PASSES
    return dict(seconds_of)


def _part(name: str, parts: Mapping[str, str]) -> str:
    """Of the innermost module in a name that the model has."""
    module = name.rpartition("/")[0]
    while module not in parts:
        module = module.rpartition(".")[0]
    return parts[module]


def _named(names: Iterable[str]) -> str:
    """The first of an operator's names, and those of what it gives and takes, with a module."""
    return next((name for name in names if "/" in name), "").removeprefix("fused ")


def _onnx_spans(path: Path, images: Tensor, threads: int) -> Iterator[tuple[str, float]]:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnx_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(PASSES + 2):
            session.run(None, {session.get_inputs()[0].name: images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    names = {node.name: _named([node.name, *node.output, *node.input]) for node in graph.node}
    ends = [event["ts"] for event in events if event["name"] == "model_run"]
    counted = sorted(ends)[-PASSES]
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= counted and "_kernel_time" in event["name"]:
            yield names.get(event["name"].removesuffix("_kernel_time"), ""), event["dur"] / 1e6


def _openvino_spans(
    path: Path, images: Tensor, threads: int, bf16: bool
) -> Iterator[tuple[str, float]]:
    openvino = import_package("openvino", "its profile")
    settings = {**openvino_settings(threads, bf16), "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names: dict = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        merged = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
        takes = [names[v.get_node().get_friendly_name()] for v in node.input_values()]
        name = node.get_friendly_name()
        names[name] = _named([name, *merged.split(","), *takes])
    request = compiled.create_infer_request()
    for index in range(PASSES + 2):
        request.infer({0: images.numpy()})
        if index >= 2:
            for node in request.profiling_info:
                yield names.get(node.node_name, ""), node.real_time.total_seconds()

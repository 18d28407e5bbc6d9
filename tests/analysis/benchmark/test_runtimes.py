"""Files timed beside models, and where their time goes."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ltm_mm.analysis.benchmark.parts import parts_of
from ltm_mm.analysis.benchmark.report import BenchmarkRow
from ltm_mm.analysis.benchmark.run import run_benchmark
from ltm_mm.analysis.benchmark.runtimes import _fill, runtime_table
from ltm_mm.errors import UserError
from ltm_mm.export import export_program, save_onnx, whole_model
from ltm_mm.export.profile import file_part_times
from tests.export import tiny


def test_table_of_runtimes():
    rows = [
        BenchmarkRow(name, 1, 0, {}, seconds, {}, 0)
        for name, seconds in {"a, PyTorch": [0.2, 0.2], "a, onnxruntime": [0.1, 0.1]}.items()
    ]
    assert runtime_table(rows).splitlines()[2:] == [
        "| a, PyTorch | 200.0 (0.0) | 1.00x |",
        "| a, onnxruntime | 100.0 (0.0) | 2.00x |",
    ]


def test_runtimes_run_on_the_cpu_only():
    with pytest.raises(UserError, match="--runtime times files on the CPU"):
        run_benchmark("ltm-efficientvit-b0", runtime=["onnxruntime"], train_step=True)


class Detector(nn.Module):
    """Large maps in its neck, small ones elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 8), nn.GELU())
        self.neck = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 64, 5), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.neck(self.backbone(image)).amax(dim=(2, 3)).softmax(-1)


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The ONNX file of a detector."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("named") / "a.onnx"
    save_onnx(export_program(Wrapped(Detector()), (64, 96)), path, ["scores"], {})
    return path


def test_what_is_computed_has_its_modules_name(file):
    import onnx

    graph = onnx.load(file).graph
    modules = {node.name.rpartition("/")[0] for node in graph.node if node.name.count("/")}
    assert {"backbone.0", "backbone.1", "neck.0", "neck.1"} <= modules
    assert [out.name for out in graph.output] == ["scores"]
    written = file.read_bytes()
    assert b"File " not in written  # lines of source code, with their paths
    assert str(Path(__file__).parent).encode() not in written


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_time_of_a_file_goes_to_its_parts(file, suffix):
    if suffix == ".xml":
        pytest.importorskip("openvino")
        from ltm_mm.export.openvino import convert_onnx

        convert_onnx(file, file.with_suffix(".xml"), {})
    start = time.perf_counter()
    images = torch.randn(1, 3, 256, 320)
    times = file_part_times(file.with_suffix(suffix), images, parts_of(Detector()), threads=1)
    whole = time.perf_counter() - start
    assert set(times) <= {"rest", "neck", "post-processing"}
    assert times["neck"] > 3 * times["rest"] > 0
    assert times["post-processing"] < times["neck"]
    assert sum(times.values()) < whole


def test_a_detector_with_random_weights_is_timed_with_detections():
    model = tiny.DETECTORS["mask"](None)
    model.roi_head.test_cfg.score_thr = 0.99
    whole, image = whole_model(model), torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert (whole(image)[2] >= 0).sum() < 30
        _fill(whole, image)
        assert (whole(image)[2] >= 0).sum() == 30
    assert 0 < model.roi_head.test_cfg.score_thr < 0.99


@pytest.mark.slow
def test_files_are_timed_in_turn_with_the_models(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    rows = run_benchmark(
        "ltm-efficientvit-b0", ltm=["none", "fast"], against=["timm"], size=(64, 96), rounds=2,
        runtime=["onnxruntime"], out=str(tmp_path),
    )  # fmt: skip
    assert [row.name for row in rows] == [
        *("timm, PyTorch", "keep=none, PyTorch", "keep=fast, PyTorch"),
        *("keep=none, onnxruntime", "keep=fast, onnxruntime"),
    ]
    assert all(len(row.forward) == 2 and {"attention", "mlp"} <= set(row.parts) for row in rows)
    assert "| keep=fast, onnxruntime | " in capsys.readouterr().out
    assert (tmp_path / "ltm-efficientvit-b0-runtimes.json").is_file()
    assert (tmp_path / "ltm-efficientvit-b0-runtimes.png").is_file()

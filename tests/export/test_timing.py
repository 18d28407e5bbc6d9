"""Files timed beside models."""

import pytest

from ltm_mm.analysis.benchmark import run_benchmark
from ltm_mm.engine import UserError
from ltm_mm.export.timing import runtime_table


def test_table_of_runtimes():
    lines = runtime_table({"a, PyTorch": [0.2, 0.2], "a, onnxruntime": [0.1, 0.1]}).splitlines()
    assert lines[2:] == [
        "| a, PyTorch | 200.0 (0.0) | 1.00x |",
        "| a, onnxruntime | 100.0 (0.0) | 2.00x |",
    ]


def test_runtimes_run_on_the_cpu_only():
    with pytest.raises(UserError, match="--runtime times files on the CPU"):
        run_benchmark("ltm-efficientvit-b0", runtime=["onnxruntime"], train_step=True)


@pytest.mark.slow
def test_files_are_timed_in_turn_with_the_models(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    run_benchmark(
        "ltm-efficientvit-b0", ltm=["none", "fast"], size=(64, 96), rounds=2,
        runtime=["onnxruntime"], out=str(tmp_path),
    )  # fmt: skip
    said = capsys.readouterr().out
    for name in ("keep=none, PyTorch", "keep=fast, onnxruntime"):
        assert f"| {name} | " in said
    assert len(list(tmp_path.glob("*-runtimes-batch1.json"))) == 1

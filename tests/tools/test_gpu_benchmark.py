"""``tools/gpu_benchmark.py``: every part in its reduced form, on a CPU."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ltm_mm.analysis.benchmark.gpu.cells import PARTS, Cell, Scale
from ltm_mm.analysis.benchmark.gpu.run import read_part, run_gpu_benchmark, run_part
from ltm_mm.errors import UserError


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", PARTS)
def test_a_dry_run_measures_everything(part: str, tmp_path: Path) -> None:
    assert run_gpu_benchmark([part], dry_run=True, out=str(tmp_path))
    found = json.loads((tmp_path / f"{part}.json").read_text())
    assert found
    assert f"## {part}" in (tmp_path / "tables.md").read_text()


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(UserError, match="--parts: speed is none of environment, tests"):
        run_gpu_benchmark(["speed"], dry_run=True)


def test_without_a_compiler_a_cell_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a cell that fails otherwise is reported as failed; both leave the next one be."""

    def without_compiler() -> dict:
        torch._dynamo.reset()
        with torch.no_grad():  # an operator of its own: no cached kernel has it
            torch.compile(nn.Softplus(beta=1.2345), dynamic=False)(torch.randn(3, 5))
        return {}

    def part(scale: Scale) -> Iterator[Cell]:
        yield "compiled", without_compiler
        yield "broken", lambda: {}["what"]
        yield "last", lambda: dict(value=3)

    monkeypatch.setitem(PARTS, "compiled", part)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/c++",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    run_part("compiled", str(tmp_path), time.time(), 60, 1, dry_run=True)
    compiled, broken, last = read_part(tmp_path, "compiled")
    assert "needs a C++ compiler" in compiled["skipped"]
    assert "KeyError" in broken["error"]
    assert last["value"] == 3
    assert "skipped: torch.compile needs" in (tmp_path / "tables.md").read_text()

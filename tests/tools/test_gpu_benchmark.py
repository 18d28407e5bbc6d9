"""``tools/gpu_benchmark.py``: every part in its reduced form, on a CPU."""

import json
from pathlib import Path

import pytest

from ltm_mm.analysis.benchmark.gpu.cells import PARTS
from ltm_mm.analysis.benchmark.gpu.run import run_gpu_benchmark
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

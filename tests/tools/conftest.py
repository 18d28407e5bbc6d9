"""Run the tools as a user does: as programs, on configs in files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ltm_mm.datasets import ensure_shapes
from tests.conftest import ROOT

Tool = Callable[..., subprocess.CompletedProcess]


def environment() -> dict[str, str]:
    """This process's, without traces of a launcher, with the probe to be found."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LTM_DEBUG")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return {**env, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(name: str, *arguments: object) -> list[str]:
    """The words of a tool's command line."""
    start = [] if name.endswith(".sh") else [sys.executable]
    return [*start, str(ROOT / "tools" / name), *map(str, arguments)]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Run a tool to its end, in an empty folder."""

    def run(name: str, *arguments: object, ok: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command(name, *arguments),
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return run


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of the built-in data set."""
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 16, "val": 4})

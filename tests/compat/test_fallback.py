"""The fallback for mmcv's ops: who gets to be ``mmcv._ext``, when, and what is said about it."""

import os
import subprocess
import sys
import venv
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from ltm_mm.compat.__main__ import LINE

ROOT = Path(__file__).parents[2]
COMPILED = PathFinder.find_spec("mmcv._ext", find_spec("mmcv").submodule_search_locations)


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with folders put first on its path."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )


def test_import_is_silent_and_cheap() -> None:
    done = python(
        "import ltm_mm, sys; sys.exit(str({'torch', 'mmcv', 'mmengine'} & {*sys.modules}))"
    )
    assert (done.stdout, done.stderr) == ("", "set()\n")


START = LINE


def test_install_and_remove(tmp_path: Path) -> None:
    venv.create(tmp_path)
    for action, there in (("install", True), ("remove", False), ("remove", False)):
        for code in ("import runpy; runpy.run_module('ltm_mm.compat', run_name='__main__')", HOOKS):
            words = [tmp_path / "bin" / "python", "-c", code, action]
            env = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
        assert done.stdout == f"{there}\n"


HOOKS = "import sys; print('LTMFallback' in str(sys.meta_path))"


def test_start_of_python_imports_nothing() -> None:
    done = python(f"import sys; before = {{*sys.modules}}\n{START}print({{*sys.modules}} - before)")
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
def test_start_of_python_takes_no_time() -> None:
    done = python(
        f"import time; start = time.process_time()\n{START}"
        "print(time.process_time() - start < 0.002)"
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow  # tests/test_configs.py opens configs in such a program
def test_start_of_python_serves_programs_that_never_name_ltm_mm() -> None:
    """mmdet's own tools: they import mmdet first. A missing module stays missing."""
    done = python(
        f"{START}\n"
        "from mmdet.utils import setup_cache_size_limit_of_dynamo; from mmcv.ops import RoIAlign\n"
        "from importlib.util import find_spec; print(RoIAlign.__name__, find_spec('mmcv_ext'))"
    )
    assert done.stdout.splitlines()[-1:] == ["RoIAlign None"], done.stderr
    assert "before ltm_mm" not in done.stderr


@pytest.mark.parametrize(
    ("real", "expected"), [(True, "/mmcv/_ext.py"), (False, "/ltm_mm/compat/ext.py")]
)
@pytest.mark.parametrize("start", ["import ltm_mm\n", START], ids=["import", "installed"])
def test_the_real_ext_wins(tmp_path: Path, real: bool, expected: str, start: str) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").touch()
    if real:
        (package / "_ext.py").touch()
    find = "import importlib.util as util; print(util.find_spec('mmcv._ext').origin)"
    done = python(start + find, tmp_path)
    assert done.stdout.endswith(expected + "\n"), done.stderr


@pytest.mark.skipif(bool(COMPILED), reason="compiled mmcv is installed")
def test_one_notice_and_mmcv_goes_on() -> None:
    done = python(
        "import ltm_mm, torch, mmcv.utils; from mmcv.ops import nms;"
        "[nms(torch.rand(3, 4), torch.rand(3), 0.5) for _ in range(2)];"
        "print(mmcv.utils.collect_env()['MMCV Compiler'])"
    )
    assert done.stdout.endswith("none (ltm_mm's fallback)\n"), done.stderr
    assert (done.stdout + done.stderr).count("mmcv has no compiled ops here") == 1


def test_other_ops_name_the_way_out(stand_in: ModuleType) -> None:
    with pytest.raises(NotImplementedError) as caught:
        stand_in.carafe_forward(1, masks=2)
    message = str(caught.value)
    assert "'carafe_forward' needs compiled mmcv" in message
    assert "make ops" in message
    assert "\n" not in message
    with pytest.raises(AttributeError, match="__path__"):
        stand_in.__path__  # noqa: B018


def test_every_op_of_mmcv_can_be_imported(stand_in: ModuleType) -> None:
    import mmcv.ops

    assert all(hasattr(mmcv.ops, name) for name in mmcv.ops.__all__)


def test_too_late_is_said_in_one_line() -> None:
    checkout = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'LTM' not in str(f)]"
    late = f"{checkout}; import mmdet.structures.mask.structures; import ltm_mm"
    warned = [line for line in python(late).stderr.splitlines() if "before ltm_mm" in line]
    if COMPILED:
        assert warned == []
    else:
        assert len(warned) == 1
        assert "mmdet was imported before ltm_mm" in warned[0]
        assert "put `import ltm_mm` first" in warned[0]


MISSING = """
import importlib.util as util, sys, ltm_mm
sys.path = [p for p in sys.path if "site-packages" not in p]
print([util.find_spec(name) for name in ("mmengine", "mmcv", "mmdet", "mmseg")])
try:
    import ltm_mm.registry
except ModuleNotFoundError as error:
    print(error.name, error, sep=": ")
"""


def test_missing_openmmlab_stays_missing_and_the_registry_says_what_to_install() -> None:
    done = python(MISSING)
    assert done.stdout.splitlines() == [
        "[None, None, None, None]",
        "mmengine: mmengine is not installed; without it ltm_mm supports timm models only: "
        "pip install 'ltm_mm[mm]'",
    ], done.stderr


@pytest.mark.parametrize(
    ("fake", "expected"),
    [
        ("", "no Python at FAKE: run 'make setup' first"),
        ('exec REAL -S "$@"', "torch is not installed: run 'make setup' first"),
        pytest.param(  # no ops are installed and pip finds no wheel: on to the compiler
            'case "$*" in *_ext*|*download*) exit 1;; esac; exec REAL "$@"',
            "no C++ compiler (no-such-compiler): install one",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["no Python", "no torch", "no compiler"],
)
def test_build_script_says_what_is_missing(tmp_path: Path, fake: str, expected: str) -> None:
    path = tmp_path / "python"
    if fake:
        path.write_text("#!/bin/sh\n" + fake.replace("REAL", sys.executable))
        path.chmod(0o755)
    done = subprocess.run(
        [ROOT / "requirements" / "build_ops.sh", path],
        env=os.environ | {"CXX": "no-such-compiler", "MMCV_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert expected.replace("FAKE", str(path)) in done.stderr
    assert done.stderr.count("\n") == 1

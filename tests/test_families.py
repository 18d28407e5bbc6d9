"""Adding a family is a backbone file and a record: those of docs/add-a-backbone.md, and no more."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = ("__init__.py", "conftest.py", "tiny_family.py", "models/__init__.py", "models/contract.py")


@pytest.mark.slow  # another pytest, in a copy of the package
def test_a_family_is_a_file_and_a_record(tmp_path: Path) -> None:
    page = (ROOT / "docs/add-a-backbone.md").read_text()
    (backbone,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (record,) = re.findall(r"```py\n(.*?)```", page, flags=re.S)
    package = tmp_path / "ltm_mm"
    shutil.copytree(ROOT / "ltm_mm", package, ignore=shutil.ignore_patterns(".mim", "__pycache__"))
    for name in TESTS:
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    (package / "models/backbones/tiny.py").write_text(backbone.partition("\n\nmodel = ")[0])
    families = package / "families.py"
    before, _, after = families.read_text().partition("FAMILIES = ")
    after = after.replace("MOBILEVIT)", "MOBILEVIT, TINY)", 1)
    families.write_text(f"{before}{record}FAMILIES = {after}")

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/tiny_family.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout

"""The README's and the configs' commands name things that exist.

Paths, make targets and options are looked up; what the commands do is tested where it is
written (`tests/tools`, `tests/models`).
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Shell lines of all pages' code blocks and of the configs' headers."""
    lines = []
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S)
        lines += [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for config in sorted((ROOT / "configs").glob("*.py")):
        lines += re.findall(r"^# {5,}(.*(?:python|bash) tools/.*)$", config.read_text(), flags=re.M)
    return sorted({line.split("#")[0].strip() for line in lines} - {""})


@pytest.mark.parametrize("command", commands())
def test_command_names_what_exists(command):
    words = [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert {w for w in words[1:] if "=" not in w} <= set(targets)
        return
    if words[0] in ("pip", "cd", "git"):
        return
    assert words[0] in ("python", "bash"), command
    tool = ROOT / words[1]
    assert tool.is_file(), command
    for word in words[2:]:
        if word.startswith(("configs/", "studies/")):
            assert (ROOT / word).is_file(), word
    script = tool.with_name("train.py") if tool.name == "dist_train.sh" else tool
    script = tool.with_name("test.py") if tool.name == "dist_test.sh" else script
    text = script.read_text()
    for option in (w.split("=")[0] for w in words[2:] if w.startswith("--")):
        assert f'"{option}"' in text, f"{script.name} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:configs|tools|ltm_mm|docs|studies|requirements)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    assert "@@" not in text


def test_makefile_lists_its_targets():
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "test", "test-slow", "ops"):
        assert f"make {target} " in done


def test_python_examples_of_the_readme_compile():
    for block in re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), flags=re.S):
        compile(block, "README.md", "exec")

"""The pages say what is true: commands, files, pictures and Python examples.

Here, in seconds: every command's words are read by the tool's own parser, every file and make
target is there, every Python example runs. ``tests/test_commands.py`` (slow) runs the commands.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, load_file

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Shell lines of all pages' code blocks and of the configs' headers, in order, each once."""
    lines = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    for config in sorted((ROOT / "configs").glob("*.py")):
        lines += re.findall(r"^# {5,}(.*(?:python|bash) tools/.*)$", config.read_text(), flags=re.M)
    stripped = (re.split(r"\s+#|^#", line)[0].strip() for line in lines)
    return list(dict.fromkeys(line for line in stripped if line))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)


def words_of(command: str) -> list[str]:
    """A command's words without the variables that are set before it."""
    return [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]


def parser_of(tool: Path) -> Callable | None:
    """``parse_args`` of a tool; None if it takes no arguments."""
    return getattr(load_file(tool), "parse_args", None)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[:90])
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(command)
    if words[0] == "make":
        # It sets up environments and trains for minutes: make says what it would do.
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=True)
        return
    if words[0] in ("pip", "cd", "git"):
        return  # changes the machine; there is nothing of ours in it
    if words[1:3] == ["-m", "ltm_mm.compat"]:
        assert words[3:] in (["install"], ["remove"])
        return
    assert words[0] in ("python", "bash"), command
    tool, arguments = ROOT / words[1], words[2:]
    assert tool.is_file(), command
    for word in arguments:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), word
    if tool.parent.name != "tools":
        return  # a script of docs/figures, which the slow test runs
    if tool.suffix == ".sh":
        place = 2 if tool.name == "dist_test.sh" else 1  # of the number of processes
        assert arguments.pop(place).isdecimal()
        tool = tool.with_name(f"{tool.stem.removeprefix('dist_')}.py")
    parse = parser_of(tool)
    if parse is None:
        assert not arguments, f"{tool.name} takes no arguments"
        return
    monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
    parse()  # ends the program where it does not understand


def test_a_wrong_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = parser_of(ROOT / "tools" / "report.py")
    assert parse is not None
    monkeypatch.setattr(sys, "argv", ["report.py", "work_dirs/demo", "--no-such-option"])
    with pytest.raises(SystemExit):
        parse()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:configs|tools|ltm_mm|docs|requirements)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    assert "@@" not in text


def test_makefile_lists_its_targets() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "test", "test-slow", "ops"):
        assert f"make {target} " in done


def test_demo_ends_with_the_report() -> None:
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = done.splitlines()
    assert any("minutes of training" in line for line in lines)
    assert [line for line in lines if "tools/" in line][-1].endswith("report.py work_dirs/demo")
    for line in lines[-2:]:  # what to look at, and what to do next
        for path in re.findall(r"docs/[\w-]+\.md", line):
            assert (ROOT / path).is_file()
    assert "work_dirs/demo/report.html" in lines[-2]


def is_slow(page: Path, code: str) -> bool:
    """tests/export/test_whole.py writes a file, the README's example measures fidelity."""
    return "export(" in code or ("fidelity(" in code and page.name != "README.md")


EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{k}", marks=[pytest.mark.slow] * is_slow(page, code))
    for page in PAGES
    for k, code in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    """``model`` is what an example finds; one that inherits a config is run by the slow test."""
    from mmdet.models.backbones import SwinTransformer

    from ltm_mm.registry import HOOKS, MODELS

    if "_base_" in code or "Path(" in code or "supervision" in code:
        compile(code, "page", "exec")  # needs data: tests/test_own_data.py and others run it
        return
    if "from transformers" in code:
        pytest.importorskip("transformers", minversion="5")
    code = code.replace('"work_dirs/', f'"{tmp_path}/').replace("steps=300", "steps=3")
    code = code.replace("448", "224")
    if "fidelity(" in code and "rounds=" not in code:
        code = code.replace("keep=[", "rounds=1, keep=[", 1)
    model = SwinTransformer(embed_dims=12, num_heads=(1, 1, 1, 1))
    names: dict[str, object] = {"model": model, "__name__": "page"}
    MODELS.import_from_location()  # else the first example would seem to register our own
    known = set(MODELS.module_dict)
    try:
        exec(code, names)
    finally:
        for name in set(MODELS.module_dict) - known:
            MODELS.module_dict.pop(name)
    if isinstance(names["model"], dict):
        backbone = MODELS.build(
            {**names["model"]["backbone"], "embed_dims": 12, "num_heads": [1] * 4}
        )
        assert backbone.plan
    for hook in names.get("custom_hooks", []):
        assert HOOKS.build(hook)
    if "features" in names:
        assert names["features"].shape == (2, 16, 10, 13)

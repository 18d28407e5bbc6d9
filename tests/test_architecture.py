"""Imports between modules: no circles, and only those that docs/architecture.md allows."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest
import torch

from ltm_mm.kernels import use_kernels, uses_onednn
from tests.conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "ltm_mm").rglob("*.py"))
    if ".mim" not in path.parts
}
PURE = ("ltm_mm.ops", "ltm_mm.merging", "ltm_mm.kernels", "ltm_mm.layers")
PURE += ("ltm_mm.presets", "ltm_mm.families")
# Arrows that may run up; each is imported when asked for.
ALLOWED = {
    ("ltm_mm", "ltm_mm.adapters"): "the package's own names: apply, remove",
    ("ltm_mm", "ltm_mm.analysis.fidelity.compare"): "the package's own name: fidelity",
    ("ltm_mm", "ltm_mm.export"): "the package's own name: export",
    ("ltm_mm", "ltm_mm.learning"): "the package's own names: learn, Learned",
    ("ltm_mm.engine.run", "ltm_mm.export.evaluate"): "testing an exported file in place of a model",
}


def imports(module: str) -> Iterator[str]:
    """All that a module imports, wherever in it: our modules, and names of other packages."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in MODULES else source


def arrows() -> dict[str, set[str]]:
    """Module -> those of ours that it imports, without what is allowed."""
    imported = {m: {i for i in imports(m) if i in MODULES and i != m} for m in MODULES}
    return {m: {i for i in targets if (m, i) not in ALLOWED} for m, targets in imported.items()}


def rows() -> list[tuple[list[str], list[str]]]:
    """Of the page's table: names of a row, and of what it depends on."""
    table = re.findall(
        r"^\| (`ltm_mm/.*?) \|.*\| (.*?) \|$", (ROOT / "docs/architecture.md").read_text(), re.M
    )
    names = [re.findall(r"`ltm_mm/(\w+)", folders) for folders, _ in table]
    return [(row, re.findall(r"`(\w+)`", on)) for row, (_, on) in zip(names, table, strict=True)]


def test_there_is_no_circle() -> None:
    # That importing a module imports its package first is left out.
    try:
        list(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_arrows_are_those_of_the_page() -> None:
    row_of, reach = {}, {}
    for number, (names, depends_on) in enumerate(rows()):
        row_of |= dict.fromkeys(names, number)
        assert all(row_of.get(name, number) < number for name in depends_on), names
        reach[number] = {number}.union(*(reach[row_of[name]] for name in depends_on))
    folders = {m: m.split(".")[1] for m in MODULES if m != "ltm_mm"}
    assert set(folders.values()) == set(row_of)
    wrong = [
        f"{module} -> {target}"
        for module, targets in arrows().items()
        for target in targets
        if {module, target} <= set(folders)
        and row_of[folders[target]] not in reach[row_of[folders[module]]]
    ]
    assert wrong == []


def test_what_is_allowed_is_needed() -> None:
    for module, target in ALLOWED:
        assert target in set(imports(module)), (module, target)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(PURE)])
def test_low_modules_stand_on_low_ones(module: str) -> None:
    for name in imports(module):
        assert name.partition(".")[0] not in ("mmengine", "mmcv", "mmdet", "mmseg", "timm"), name
        if name.startswith("ltm_mm"):
            assert name.startswith(PURE), name
        if module.startswith(("ltm_mm.ops", "ltm_mm.merging")):
            assert not name.startswith(("ltm_mm.kernels", "ltm_mm.layers")), name


def test_files_are_of_a_size_to_be_read() -> None:
    longest = {m: len(path.read_text().splitlines()) for m, path in MODULES.items()}
    assert {m: n for m, n in longest.items() if n > 420} == {}


def test_one_switch_turns_kernels_off_and_on_again() -> None:
    x = torch.ones(2, 2)
    before = uses_onednn(x, x)
    with use_kernels(False):
        assert not uses_onednn(x, x)
        with use_kernels(True):
            assert uses_onednn(x, x) == before
        assert not uses_onednn(x, x)
    assert uses_onednn(x, x) == before

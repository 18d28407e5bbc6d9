"""The layout says what stands on what: no circles, and the method knows no kernels."""

import ast
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
PURE = ("ltm_mm.ops", "ltm_mm.merging", "ltm_mm.kernels", "ltm_mm.layers", "ltm_mm.presets")


def imports(module: str) -> Iterator[str]:
    """What a module imports when it is imported: our modules, and names of other packages."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in at_import(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                own = f"{source}.{alias.name}"
                yield own if own in MODULES else source


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import: not those in functions, nor those for type checkers."""
    for node in body:
        yield node
        if isinstance(node, ast.Try):
            yield from at_import(node.body)


def test_there_is_no_circle() -> None:
    graph = {m: {i for i in imports(m) if i in MODULES and i != m} for m in MODULES}
    # That importing a module imports its package first is left out.
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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

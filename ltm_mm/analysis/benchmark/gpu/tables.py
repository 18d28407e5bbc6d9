"""The tables of all parts' files, for docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..report import BenchmarkRow, markdown_table, parts_table, to_markdown


def write_tables(folder: Path, parts: Mapping[str, Sequence[dict]]) -> None:
    """Write ``tables.md``.

    Args:
        folder: where the parts' files are.
        parts: part -> its cells, as the files have them.
    """
    lines = ["# Measured by tools/gpu_benchmark.py", ""]
    for part, cells in parts.items():
        if cells:
            lines += [f"## {part}", ""]
        for cell in cells:
            lines += [f"### {cell['name']}", "", *_body(cell), ""]
    (folder / "tables.md").write_text("\n".join(lines).rstrip() + "\n")


def _body(cell: Mapping) -> list[str]:
    if "skipped" in cell:
        return [f"skipped: {cell['skipped']}"]
    if "error" in cell:
        return [f"failed: {cell['error']}"]
    if "rows" in cell:
        return [to_markdown([BenchmarkRow(**row) for row in cell["rows"]])]
    if "regions" in cell:
        return _profile(cell)
    return [_plain(key, value) for key, value in cell.items() if key not in ("name", "output")]


def _profile(cell: Mapping) -> list[str]:
    lines = [parts_table({"by module": cell["parts"]}), ""]
    lines += [_times_line("by function, ms", cell["regions"]), ""]
    lines += [
        f"{cell['launches']} kernels, {cell['kernel_seconds'] * 1e3:.2f} ms; the longest:",
        "",
    ]
    kernels = [
        ["`" + name.replace("|", "\\|")[:80] + "`", str(calls), f"{seconds * 1e3:.3f}"]
        for name, calls, seconds in cell["kernels"]
    ]
    return [*lines, markdown_table(["kernel", "calls", "ms"], kernels)]


def _times_line(what: str, seconds: Mapping[str, float]) -> str:
    """Milliseconds (and share), in the order that they have."""
    total = sum(seconds.values()) or 1.0
    values = [f"{value * 1e3:.2f} ({value / total:.0%})" for value in seconds.values()]
    return markdown_table([what, *seconds], [["", *values]])


def _plain(key: str, value: object) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {entry}" for name, entry in value.items())
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return f"- {key}: {value}"

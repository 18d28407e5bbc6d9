"""What a benchmark found: rows, tables, and a file with every figure."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .latency import Spread, ratios
from .parts import ordered

PLAIN = ("keep=none", "plain")  # names of our own path without merging


@dataclass
class BenchmarkRow:
    """What was measured of one model at one batch size.

    Attributes:
        name: of the model.
        batch: images per pass.
        parameters: how many.
        macs: part of the network -> multiply-accumulates of one image.
        forward: seconds of each round's forward pass.
        parts: part of the network -> seconds of one more pass; empty when compiled.
        memory: bytes of the weights and the most that a forward pass held beside them.
        train: seconds of each round's training step; empty if not asked for.
        train_memory: bytes of weights, optimiser state and the most of a training step.
    """

    name: str
    batch: int
    parameters: int
    macs: dict[str, int]
    forward: list[float]
    parts: dict[str, float]
    memory: int
    train: list[float] = field(default_factory=list)
    train_memory: int = 0

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(self.macs.values())


def to_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """Two tables of the rows of one batch size: what each model takes, and where.

    Speed-ups and shares of memory are against the first row, round by round. 'realised /
    theoretical' is the measured speed-up over our own path without merging, divided by the
    ratio of the multiply-accumulates.
    """
    first = rows[0]
    plain = next((row for row in rows if row.name in PLAIN), None)
    train = bool(first.train)
    head = ["model", "params", "GMACs", "forward ms (IQR)", "speed-up", "realised / theoretical"]
    head += ["memory MiB"]
    head += ["training step ms (IQR)", "speed-up", "memory MiB"] * train
    lines = []
    for row in rows:
        realised = "-"
        if plain is not None and row.total_macs < plain.total_macs:
            speedup = ratios(plain.forward, row.forward).median
            realised = f"{speedup / (plain.total_macs / row.total_macs):.2f}"
        cells = [
            row.name,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.total_macs / 1e9:.2f}",
            *_times(first.forward, row.forward),
            realised,
            _memory(first.memory, row.memory),
        ]
        if train:
            cells += _times(first.train, row.train) if row.train else ["-", "-"]
            cells.append(_memory(first.train_memory, row.train_memory) if row.train else "-")
        lines.append(cells)
    table = markdown_table(head, lines)
    if not first.parts:
        return table
    return f"{table}\n\n{parts_table({row.name: row.parts for row in rows})}"


def parts_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds (and share) of one forward pass by part.

    Args:
        rows: name -> part -> seconds; those without parts have no line.
    """
    known = ordered(part for parts in rows.values() for part in parts)
    lines = []
    for name, parts in rows.items():
        total = sum(parts.values())
        shares = [parts.get(part, 0.0) for part in known]
        if parts:
            lines.append([name, *(f"{t * 1e3:.1f} ({t / total:.0%})" for t in shares)])
    return markdown_table(["where the forward pass goes, ms", *known], lines)


def _times(base: Sequence[float], seconds: Sequence[float]) -> list[str]:
    spread, ratio = Spread.of(seconds), ratios(base, seconds)
    iqr = (spread.high - spread.low) * 1e3
    return [f"{spread.median * 1e3:.1f} ({iqr:.1f})", f"{ratio.median:.2f}x"]


def _memory(base: int, held: int) -> str:
    return f"{held / 2**20:.0f} ({held / base:.2f}x)"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all rows have as many cells as its head."""
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((x.split(":", 1)[1].strip() for x in lines if "model name" in x), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return dict(
        cpu=cpu,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=gpu,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def save_json(
    path: Path,
    rows: Sequence[BenchmarkRow],
    settings: Mapping[str, object],
    metadata: Mapping[str, object],
) -> None:
    """Write all that was measured, every round's seconds included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = dict(machine=dict(metadata), settings=dict(settings), rows=[asdict(row) for row in rows])
    path.write_text(json.dumps(data, indent=1) + "\n")

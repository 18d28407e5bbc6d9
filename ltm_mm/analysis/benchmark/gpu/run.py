"""What ``tools/gpu_benchmark.py`` does: parts one by one, each in a process of its own.

A part that crashes, hangs or poisons the device's context costs itself alone. Figures are written
cell by cell, so that what was measured is kept whatever happens after it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from ....checks.options import check_counts
from ....checks.outputs import check_folder
from ....engine.build import check_device
from ....errors import UserError, explain
from .cells import PARTS, Scale
from .tables import write_tables

# Seconds of each part: less than ten minutes together.
BUDGETS = dict(
    environment=20, tests=100, backbones=80, compiled=170, models=60, profile=30, training=50
)
# Inductor's words and Triton's.
NO_COMPILER = re.compile(r"No working C\+\+ compiler found|Failed to find C compiler")
GRACE = 10  # seconds that a part may take over its time before it is ended


def run_gpu_benchmark(
    parts: Sequence[str] = (),
    budget: int | None = None,
    rounds: int = 20,
    dry_run: bool = False,
    out: str = "work_dirs/gpu",
) -> bool:
    """Measure a GPU, part by part; writes ``<part>.json`` and ``tables.md``.

    Args:
        parts: of ``PARTS``; none: all.
        budget: seconds per part; None: ``BUDGETS``.
        rounds: rounds of timing that count.
        dry_run: all of it on the CPU: narrow models, small images, one round, no time limit but a
            given budget.
        out: folder for the files.

    Returns:
        Whether nothing failed.

    Raises:
        UserError: for a mistake in the input.
    """
    check_counts({"--budget": budget, "--rounds": rounds})
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"--parts: {unknown[0]} is none of {', '.join(PARTS)}")
    if not dry_run:
        check_device("cuda")
    check_folder("--out", out)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    well = True
    for part in parts or PARTS:
        limit = budget or (3600 if dry_run else BUDGETS[part])
        print(f"{part}: up to {limit} s", flush=True)
        start = time.time()
        options = dict(part=part, out=out, start=start, limit=limit, rounds=rounds, dry_run=dry_run)
        reason = _in_a_process(options, limit + GRACE)
        cells = read_part(folder, part)
        if reason:
            save_part(folder, part, [*cells, dict(name=part, error=reason)])
            cells = read_part(folder, part)
        failed = [cell for cell in cells if "error" in cell or cell.get("failed")]
        skipped = sum("skipped" in cell for cell in cells)
        for cell in failed:
            print(f"  {cell['name']}: {cell.get('error') or 'tests failed'}")
        print(f"  {len(cells) - len(failed) - skipped} measured, {len(failed)} failed, {skipped}")
        print(f"  skipped; {time.time() - start:.0f} s", flush=True)
        well = well and not failed
    print(f"{folder / 'tables.md'}")
    return well


def _in_a_process(options: dict, limit: float) -> str | None:
    """Run a part with all that it starts; what went wrong, or None."""
    root = str(Path(__file__).parents[4])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", __package__, json.dumps(options)]
    child = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True
    )
    try:
        status = child.wait(limit)
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return f"its process ended with status {status}" if status else None


def run_part(part: str, out: str, start: float, limit: float, rounds: int, dry_run: bool) -> None:
    """One part in this process: every cell is tried until the time is spent.

    Args:
        part: of ``PARTS``.
        out: folder for the files.
        start: when it began, as ``time.time()`` has it.
        limit: seconds it may take.
        rounds, dry_run: see :func:`run_gpu_benchmark`.
    """
    folder, deadline = Path(out), start + limit
    scale = Scale("cpu" if dry_run else "cuda", 1 if dry_run else rounds, dry_run, deadline)
    cells: list[dict] = []
    save_part(folder, part, cells)
    for name, measure in PARTS[part](scale):
        began = time.time()
        if began > deadline:
            cells.append(dict(name=name, skipped=f"the {limit:.0f} s of the part were spent"))
            continue
        try:
            cell = measure()
        except Exception as error:
            line = explain(error) or f"{type(error).__name__}: {error}".splitlines()[0]
            if NO_COMPILER.search(str(error)):
                cell = dict(skipped=f"torch.compile needs a C++ compiler ({line})")
            else:
                cell = dict(error=line, traceback=traceback.format_exc()[-4000:])
            if scale.device == "cuda":
                torch.cuda.empty_cache()
        cells.append(dict(name=name, seconds=round(time.time() - began, 1), **cell))
        save_part(folder, part, cells)
    save_part(folder, part, cells)


def read_part(folder: Path, part: str) -> list[dict]:
    """The cells of a part's file; none where there is none."""
    file = folder / f"{part}.json"
    return json.loads(file.read_text())["cells"] if file.is_file() else []


def save_part(folder: Path, part: str, cells: Sequence[dict]) -> None:
    """Write a part's file, and the tables of all parts' files."""
    new = folder / f"{part}.json.new"
    new.write_text(json.dumps(dict(part=part, cells=list(cells)), indent=1) + "\n")
    new.replace(folder / f"{part}.json")
    write_tables(folder, {name: read_part(folder, name) for name in PARTS})

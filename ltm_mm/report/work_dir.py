"""Read what a run left in its work dir: config, curves, metrics, checkpoint, commands.

mmengine's layout, which the tools here and mmdet's and mmseg's own write::

    <work dir>/<config's name>.py            the config as it ran
    <work dir>/last_checkpoint               path of the newest checkpoint
    <work dir>/<time>/vis_data/scalars.json  a line per log entry: training, validation
    <work dir>/<time>/vis_data/config.py     the config of that start
    <work dir>/<time>/<time>.json            metrics of a test
    <work dir>/<time>/by_class.json          what it found per class, and of which checkpoint
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from ..engine import load_config
from ..engine.by_class import FILE
from ..engine.commands import Command, read_commands
from ..errors import UserError
from ..export.files import is_exported

Entry = Mapping[str, float]
NOT_METRICS = ("time", "data_time", "step", "epoch", "iter")


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        name: of the work dir, for headings.
        folder: the work dir.
        cfg: the config as it ran.
        train: log entries of training, by rising step.
        val: log entries of validation; ``step`` is an epoch or an iteration.
        test: metrics of the newest test; empty if none was made.
        tested: name of the checkpoint that ``test`` is of; empty if it is not known.
        by_class: what the newest test found per class, see :mod:`ltm_mm.evaluation.by_class`.
        start: the config with which it began, before any resume.
        checkpoint: the tested one, else the best, else the newest; None if all are gone.
        commands: what was typed, oldest first.
        benchmark: a benchmark's file; None if there is none.
        environment: what it was trained with, from the log: label -> version.
        notes: what was missing or damaged, a sentence each.
    """

    name: str
    folder: Path
    cfg: Config
    train: list[Entry] = field(default_factory=list)
    val: list[Entry] = field(default_factory=list)
    test: dict[str, float] = field(default_factory=dict)
    tested: str = ""
    by_class: dict = field(default_factory=dict)
    start: Config | None = None
    checkpoint: Path | None = None
    commands: list[Command] = field(default_factory=list)
    benchmark: dict | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """The final ones: of the newest test, else of the last validation."""
        return self.test or (metrics_of(self.val[-1]) if self.val else {})

    @property
    def by_epoch(self) -> bool:
        """Whether validations are counted in epochs."""
        return "IterBased" not in str((self.cfg.get("train_cfg") or {}).get("type", ""))

    def median(self, key: str) -> float | None:
        """Median of a value over the training log, e.g. ``time`` in seconds per step."""
        values = [entry[key] for entry in self.train if key in entry]
        return statistics.median(values) if values else None


def read_run(folder: str | Path) -> Run:
    """Read a work dir.

    Raises:
        UserError: it does not exist, or holds no run.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"work dir {folder} {'is a file' if path.exists() else 'does not exist'}")
    starts = sorted(
        p for p in path.iterdir() if p.is_dir() and re.fullmatch(r"\d{8}_\d{6}", p.name)
    )
    run = Run(path.resolve().name, path, _config(path, starts))
    for start in starts:
        _read_start(run, start)
    run.checkpoint = _checkpoint(run)
    run.commands = read_commands(path)
    run.benchmark = _benchmark(path)
    run.environment = _environment(starts)
    if not run.train and not run.metrics:
        run.notes.append("No losses or metrics were logged yet.")
    return run


def metrics_of(entry: Entry) -> dict[str, float]:
    """The metrics of a log entry; -1, which COCO gives where there is nothing, left out."""
    return {
        name: float(value)
        for name, value in entry.items()
        if name not in NOT_METRICS and isinstance(value, (int, float)) and value != -1
    }


def _config(folder: Path, starts: Sequence[Path]) -> Config:
    """The config of the last start, or the newest one that lies in the work dir."""
    files = [start / "vis_data" / "config.py" for start in starts]
    files = [file for file in files if file.is_file()]
    in_folder = sorted(folder.glob("*.py"), key=lambda file: file.stat().st_mtime)
    if not in_folder and not files:
        raise UserError(f"{folder} is no work dir of a run: it has no config (*.py)")
    cfg = load_config((in_folder or files)[-1])
    if not cfg.get("model"):
        raise UserError(f"{cfg.filename} is no config of a run: it has no model")
    return cfg


def _read_start(run: Run, start: Path) -> None:
    """Add one start of the run: training (from scratch or going on), or a test."""
    scalars = start / "vis_data" / "scalars.json"
    entries = _lines(run, scalars) if scalars.is_file() else []
    train = [e for e in entries if "loss" in e and "step" in e]
    val = [e for e in entries if "loss" not in e and "step" in e and metrics_of(e)]
    if train or val:
        if _resumed(start):
            run.train = _before(run.train, train)
            run.val = _before(run.val, val)
        else:
            run.train, run.val, run.test, run.by_class, run.tested = [], [], {}, {}, ""
            run.start = _start_config(start)
        run.train += train
        run.val += val
    test = start / f"{start.name}.json"
    if test.is_file() and (lines := _lines(run, test)):
        run.test = metrics_of(lines[-1])
        details = start / FILE
        run.by_class = _lines(run, details)[-1] if details.is_file() else {}
        run.tested = Path(run.by_class.pop("checkpoint", "")).name


def _lines(run: Run, file: Path) -> list[dict]:
    """The JSON objects of a file, one a line; a killed run may leave half a line."""
    entries, bad = [], 0
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            bad += 1
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    if bad:
        run.notes.append(f"{bad} damaged lines of {file.relative_to(run.folder)} were left out.")
    return entries


def _resumed(start: Path) -> bool:
    """Whether a start went on from a checkpoint: its config says so."""
    file = start / "vis_data" / "config.py"
    return file.is_file() and bool(re.search(r"^resume *= *True", file.read_text(), flags=re.M))


def _before(old: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """The entries that come before the new ones: steps that were run again count once."""
    return [e for e in old if not new or e["step"] < new[0]["step"]]


def _start_config(start: Path) -> Config | None:
    file = start / "vis_data" / "config.py"
    try:
        return load_config(file) if file.is_file() else None
    except UserError:
        return None


def _checkpoint(run: Run) -> Path | None:
    """The tested checkpoint, the best or the newest one, also of a work dir that was moved."""
    tested = run.folder / run.tested
    if run.tested.endswith(".pth") and tested.is_file():
        return tested
    best = sorted(run.folder.glob("best_*.pth"), key=lambda file: file.stat().st_mtime)
    if best and (not run.test or is_exported(run.tested)):
        return best[-1]
    note = run.folder / "last_checkpoint"
    if not note.is_file():
        run.notes.append("There is no checkpoint (last_checkpoint is missing).")
        return None
    named = Path(note.read_text().strip())
    for file in (run.folder / named.name, named):
        if file.is_file():
            return file
    run.notes.append(f"The checkpoint {named} is gone.")
    return None


def _environment(starts: Sequence[Path]) -> dict[str, str]:
    """Versions that mmengine wrote at the top of the newest log."""
    labels = {"Python": "Python", "PyTorch": "PyTorch", "MMEngine": "MMEngine", "GPU 0": "GPU"}
    for log in (log for start in reversed(starts) for log in sorted(start.glob("*.log"))):
        with open(log, errors="replace") as file:
            head = file.read(20_000)
        matches = {
            label: re.search(rf"^ +{name}: (.+)$", head, flags=re.M)
            for name, label in labels.items()
        }
        if matches["PyTorch"]:
            return {k: v[1].partition(" (main")[0][:60] for k, v in matches.items() if v}
    return {}


def _benchmark(folder: Path) -> dict | None:
    """What ``tools/benchmark.py --out`` wrote into the work dir, or a folder of it."""
    for file in sorted([*folder.glob("*.json"), *folder.glob("benchmark*/*.json")]):
        try:
            data = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(data, dict) and {"machine", "settings", "rows"} <= set(data):
            return data
    return None

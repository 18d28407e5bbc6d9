"""Variants x seeds through the ordinary trainer, from one YAML file (ours).

A study survives being stopped: finished runs are known by their result file and an
interrupted one goes on from its last checkpoint. A run that fails is reported and the
study goes on. Each run has a process of its own, so that none inherits another's state.
"""

import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.config import Config

from ..engine import UserError, evaluate, load_config, train
from ..engine.config import change_config
from ..engine.errors import explain
from .study_file import Study, Variant, read_study
from .study_report import collect, plot, write_report

# The last checkpoint is evaluated once, on the config's test set, so training validates nothing.
NO_VALIDATION = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
UNENDING = 10**9  # mmengine's schedulers without an end have a huge one


@dataclass(frozen=True)
class Run:
    """One variant with one seed: where it lives and all that decides its result."""

    variant: Variant
    seed: int
    folder: Path
    settings: Mapping[str, object]
    parent: "Run | None" = None

    def result(self) -> dict | None:
        """What the finished run left behind; None before that."""
        file = self.folder / "result.json"
        return json.loads(file.read_text()) if file.is_file() else None


def plan_runs(study: Study, work_dir: Path) -> list[Run]:
    """All runs in order: all variants of the first seed, then of the second, ...

    Raises:
        UserError: the config or an option does not fit, or a run's folder was made with
            other settings.
    """
    runs: list[Run] = []
    base, configs = load_config(study.config), {}
    own = {}
    for variant in study.variants.values():
        options = {**study.cfg_options, **variant.cfg_options}
        key = json.dumps(options, default=str)
        if key not in configs:  # mmengine takes '_delete_' out of what it is given
            configs[key] = change_config(deepcopy(base), deepcopy(options))
        cfg = configs[key]
        try:
            shortened = shorten(cfg, variant.steps) if variant.steps not in (0, 1) else {}
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from error
        own[variant.name] = {
            "config": study.config,
            "config_sha256": hashlib.sha256(
                json.dumps(cfg.to_dict(), default=str).encode()
            ).hexdigest(),
            "ltm": variant.ltm,
            **({} if variant.ib is None else {"ib": variant.ib}),
            "steps": variant.steps,
            "cfg_options": {**options, **shortened},
        }
    for seed in study.seeds:
        done: dict[str, Run] = {}
        for name, variant in study.variants.items():
            parent = done.get(variant.start) if variant.start else None
            settings = {**own[name], "seed": seed, "from": parent.settings if parent else None}
            folder = work_dir / name / f"seed{seed}"
            _check_settings(folder, settings)
            done[name] = Run(variant, seed, folder, settings, parent)
        runs += done.values()
    return runs


def _check_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Refuse to mix results of different settings."""
    file = folder / "settings.json"
    if not file.is_file():
        return
    before, now = json.loads(file.read_text()), json.loads(json.dumps(settings, default=str))
    if before != now:
        differing = [key for key in now if before.get(key) != now[key]]
        raise UserError(
            f"{folder} was made with other settings ({', '.join(differing)}); move or delete it, "
            "or give another --work-dir"
        )


def shorten(cfg: Config, share: float) -> dict[str, object]:
    """Options that scale a config's training and its schedulers, warm-up included.

    Args:
        cfg: with ``train_cfg`` and perhaps ``param_scheduler``.
        share: of its iterations or epochs, > 0.

    Returns:
        Dotted key -> value.

    Raises:
        UserError: if a share of the epochs is not whole.
    """
    options: dict[str, object] = {}
    if "max_iters" in cfg.train_cfg:
        options["train_cfg.max_iters"] = max(1, round(cfg.train_cfg.max_iters * share))
    else:
        epochs = cfg.train_cfg.max_epochs * share
        if abs(epochs - round(epochs)) > 1e-6 or round(epochs) < 1:
            raise UserError(
                f"steps {share:g} of {cfg.train_cfg.max_epochs} epochs is {epochs:g}; choose "
                "a share that gives whole ones, or change train_cfg.max_epochs"
            )
        options["train_cfg.max_epochs"] = round(epochs)
    if schedulers := cfg.get("param_scheduler"):  # all of it: an option cannot reach into a list
        single = isinstance(schedulers, Mapping)
        scaled = [_scale(s, share) for s in ([schedulers] if single else schedulers)]
        options["param_scheduler"] = scaled[0] if single else scaled
    return options


def _scale(scheduler: Mapping[str, object], share: float) -> dict[str, object]:
    """A scheduler's config with all counts of steps scaled."""
    scaled = dict(scheduler)
    for key in ("begin", "end", "T_max", "total_steps", "total_iters", "step_size"):
        value = scheduler.get(key)
        if isinstance(value, (int, float)) and 0 < value < UNENDING:
            scaled[key] = max(1, round(value * share))
    if "milestones" in scheduler:
        scaled["milestones"] = [max(1, round(m * share)) for m in scheduler["milestones"]]
    return scaled


def run_studies(
    paths: Sequence[str],
    work_dir: str | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
) -> int:
    """Run one study after the other; of several also draw one figure.

    Args:
        paths: the studies' YAML files. The figure has the first metric of each one's
            figure and is written to ``studies.png``.
        work_dir: see :func:`run_study`; of several studies, the folder that theirs are in.
        seeds, only: see :func:`run_study`.

    Returns:
        Number of runs that failed.

    Raises:
        UserError: see :func:`run_study`.
    """
    if len(paths) == 1:
        return run_study(paths[0], work_dir, seeds, only)
    folder = Path(work_dir or "work_dirs")
    roots = [folder / Path(path).stem for path in paths]
    failed = sum(
        run_study(path, str(root), seeds, only) for path, root in zip(paths, roots, strict=True)
    )
    panels = []
    for path, root in zip(paths, roots, strict=True):
        study = read_study(path)
        study = replace(study, figure=(study.figure or tuple(study.metrics))[:1])
        panels.append((study, collect(study, plan_runs(study, root))))
    plot(panels, folder / "studies.png")
    print(f"figure of all studies: {folder}/studies.png")
    return failed


def run_study(
    path: str,
    work_dir: str | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
) -> int:
    """Run what is not finished yet and write the report after every run.

    Args:
        path: the study's YAML file.
        work_dir: for runs and report; default ``work_dirs/<study's name>``.
        seeds, only: run these seeds and variants alone; the report has all there is.

    Returns:
        Number of runs that failed.

    Raises:
        UserError: see :func:`read_study` and :func:`plan_runs`.
    """
    study = read_study(path)
    for name, asked, known in (
        ("--seeds", seeds, study.seeds),
        ("--only", only, list(study.variants)),
    ):
        if unknown := [str(a) for a in asked or () if a not in known]:
            raise UserError(
                f"{name} {' '.join(unknown)}: the study has {', '.join(map(str, known))}"
            )
    root = Path(work_dir or Path("work_dirs", study.name))
    runs = plan_runs(study, root)
    asked_runs = [
        r for r in runs if r.seed in (seeds or study.seeds) and (not only or r.variant.name in only)
    ]
    todo = [r for r in asked_runs if r.result() is None]
    print(f"{study.name}: {len(asked_runs)} runs, {len(asked_runs) - len(todo)} finished before")
    scope = load_config(study.config).get("default_scope")
    failed = 0
    for index, run in enumerate(todo):
        left = " left: " + _duration(sum(t for r in todo[index:] if (t := estimate(r, runs))))
        print(
            f"[{index + 1}/{len(todo)}] {run.variant.name}, seed {run.seed}: "
            f"{_duration(estimate(run, runs))},{left}",
            flush=True,
        )
        reason = _start(run, study.metrics, scope)
        failed += reason is not None
        print(f"    {reason or _summary(run, study.metrics)}", flush=True)
        write_report(study, runs, root)
    if not todo:
        write_report(study, runs, root)
    print(f"table, figure and all values: {root}/report.md, .png, .csv, .json")
    return failed


def estimate(run: Run, runs: Sequence[Run]) -> float | None:
    """Seconds a run will take: as its variant took before, else by its share of the steps."""
    finished = [(r.variant, result["seconds"]) for r in runs if (result := r.result())]
    same = [seconds for variant, seconds in finished if variant.name == run.variant.name]
    if same:
        return sum(same) / len(same)
    # A run that only evaluates costs about as much as a twentieth of a training.
    share = sum(max(variant.steps, 0.05) for variant, _ in finished)
    rate = sum(seconds for _, seconds in finished) / share if share else None
    return rate and rate * max(run.variant.steps, 0.05)


def _duration(seconds: float | None) -> str:
    if not seconds:
        return "time not known yet"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"


def _summary(run: Run, metrics: Mapping[str, str]) -> str:
    result = run.result() or {}
    found = result["metrics"]
    values = [f"{label} {found[key]:.4g}" for label, key in metrics.items() if key in found]
    if missing := [key for key in metrics.values() if key not in found]:
        values.append(f"without {', '.join(missing)}")
    return f"{', '.join(values)} ({result['seconds']:.0f} s)"


def _start(run: Run, metrics: Mapping[str, str], scope: str | None) -> str | None:
    """Run it in a process of its own; returns why it failed, if it did."""
    if run.parent and run.parent.result() is None:
        return f"FAILED: {run.parent.variant.name}, which it starts from, has no result"
    run.folder.mkdir(parents=True, exist_ok=True)
    _write(run.folder / "settings.json", run.settings)
    # A fork server imports the heavy packages once for all runs.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        parts = ("models", "datasets", "evaluation", "engine", "visualization")
        context.set_forkserver_preload(["ltm_mm.engine", *(f"{scope}.{part}" for part in parts)])
    process = context.Process(target=_work, args=(run, dict(metrics)))
    process.start()
    _follow(process, run.folder / "log.txt")
    if process.exitcode == 0 and run.result() is not None:
        return None
    log = run.folder / "log.txt"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    last = lines[-1] if lines and process.exitcode == 1 else f"exit status {process.exitcode}"
    return f"FAILED: {last} (see {log})"


def _follow(process: multiprocessing.process.BaseProcess, log: Path) -> None:
    """Wait for a run; on a terminal, show how far it is."""
    if not sys.stdout.isatty():
        process.join()
        return
    while process.is_alive():
        process.join(timeout=2)
        print(f"\r    {_progress(log):<40}", end="", flush=True)
    print(f"\r{'':<44}\r", end="", flush=True)


def _progress(log: Path) -> str:
    """The newest step in a log, such as ``Iter(train) [120/300]``; '' before the first."""
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(log.stat().st_size - 4000, 0))
        end = file.read().decode(errors="replace")
    steps = re.findall(r"(\w+\(\w+\)(?: *\[ *\d+/\d+\]| *\[ *\d+\])+)", end)
    return " ".join(steps[-1].split()) if steps else ""


def _work(run: Run, metrics: Mapping[str, str]) -> None:
    """Train and evaluate, with all output in the run's log."""
    log = os.open(run.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        start = time.time()
        with FileLock(run.folder / ".lock", timeout=0):  # its study may have been killed alone
            values = train_and_evaluate(run)
        if not set(metrics.values()) & set(values):  # some may be of other variants alone
            raise UserError(
                f"no metric {', '.join(metrics.values())}; there are: {', '.join(values)}"
            )
        result = {"metrics": values, "seconds": time.time() - start, **run.settings}
        _write(run.folder / "result.json", result)
    except Timeout:
        print(f"error: another process is at {run.folder}; wait for it or end it", flush=True)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        print("error:", explain(error) or f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


def train_and_evaluate(run: Run) -> dict[str, float]:
    """Do a run's work in this process; returns its metrics on the test set."""
    options = {**run.settings["cfg_options"], "randomness.seed": run.seed}
    common = dict(config=run.settings["config"], work_dir=str(run.folder), ltm=run.variant.ltm)
    checkpoint = last_checkpoint(run.parent.folder) if run.parent else None
    if run.variant.steps:
        changes = deepcopy(options) | NO_VALIDATION
        start = dict(resume="auto", checkpoint=checkpoint, ib=run.variant.ib)
        train(**common, **start, cfg_options=changes)
        checkpoint = last_checkpoint(run.folder)
    metrics = evaluate(**common, checkpoint=checkpoint, cfg_options=options)
    return {k: float(v) for k, v in metrics.items() if isinstance(v, Real)}  # NumPy's too


def last_checkpoint(folder: Path) -> str:
    """The checkpoint a run ended with, or, of a run that only evaluated, started from."""
    note = folder / "last_checkpoint"
    if note.is_file():
        return str(folder / Path(note.read_text().strip()).name)
    raise UserError(f"{folder} has no checkpoint; was it a variant with steps 0?")


def _write(file: Path, content: object) -> None:
    """Write JSON whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, default=str))
    part.replace(file)

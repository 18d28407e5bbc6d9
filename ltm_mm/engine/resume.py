"""Find a checkpoint to go on from; survive one that was being written when a run died."""

import ast
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints import read_state_dict
from ..checks.notes import log_warning
from ..errors import UserError, preview

TRAINING = {"meta", "message_hub", "optimizer"}
UNTRUSTED = "--trust-checkpoint"


def find_resume(resume: str | None, work_dir: str, trust: bool) -> str | None:
    """The checkpoint that training goes on from.

    Args:
        resume: a path; 'auto' for the newest readable one in ``work_dir``; None.
        work_dir: where the earlier run saved.
        trust: see :func:`ltm_mm.checkpoints.read_state_dict`.

    Returns:
        A path; None to start afresh.

    Raises:
        UserError: the file is missing or damaged, holds no training state, or needs
            trust; with 'auto', if there are checkpoints and none can be read.
    """
    if resume is None:
        return None
    if resume != "auto":
        check_resumable(resume, trust)
        return resume
    damaged = []
    for path in saved_checkpoints(work_dir):
        try:
            check_resumable(path, trust)
        except UserError as error:
            if UNTRUSTED in str(error):
                raise
            damaged.append(path)
            print_log(f"not resuming from it: {error}", level=logging.WARNING)
            continue
        return path
    if damaged:
        raise UserError(
            f"--resume: no checkpoint in {work_dir} can be resumed from "
            f"({', '.join(Path(p).name for p in damaged)}); delete them or leave --resume out to "
            "start afresh"
        )
    print_log(f"--resume: no checkpoint in {work_dir} yet, training starts afresh")
    return None


def use_resume(cfg: Config, resume: str | None, trust: bool) -> str | None:
    """Have a config resume where :func:`find_resume` finds something; returns that."""
    checkpoint = find_resume(resume, cfg.work_dir, trust)
    cfg.load_from, cfg.resume = checkpoint or cfg.get("load_from"), checkpoint is not None
    return checkpoint


def saved_checkpoints(work_dir: str) -> list[str]:
    """Checkpoints of a run: the last one that was written whole, then the rest, newest first."""
    folder = Path(work_dir)
    note = folder / "last_checkpoint"
    noted = Path(note.read_text().strip()) if note.is_file() else None
    # The best model's file has no optimizer state.
    rest = [p for p in folder.glob("*.pth") if not p.name.startswith("best_")]
    rest.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    if noted is not None:  # a folder that was moved keeps its old path in the note
        noted = noted if noted.exists() else folder / noted.name
        rest = [noted, *(p for p in rest if p.name != noted.name)] if noted.exists() else rest
    return [str(p) for p in rest]


def check_resumable(path: str, trust: bool) -> None:
    """Raise a UserError unless ``path`` is a whole checkpoint with training state."""
    if os.path.isdir(os.path.expanduser(path)):
        raise UserError(
            f"{path} is a folder: name the file in it (of FSDP's pieces there is none: set "
            "strategy.state_dict_cfg='full')"
        )
    checkpoint = read_checkpoint(path, trust)
    if not isinstance(checkpoint, dict) or not set(checkpoint) >= TRAINING:
        raise UserError(
            f"{path} holds weights but no training state (optimizer, step), so nothing to resume; "
            f"use --checkpoint {path} to start from its weights"
        )


def read_checkpoint(path: str, trust: bool) -> Any:
    """All of a checkpoint; unpickled freely only once it is known to be harmless.

    Raises:
        UserError: missing, damaged, or in need of trust.
    """
    try:
        read_state_dict(path, trust=trust)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    path = os.path.expanduser(path)
    return torch.load(path, map_location="cpu", weights_only=False, mmap=is_zipfile(path))


def check_same_model(model: Any, path: str, trust: bool, cfg: Config) -> None:
    """Raise a UserError if a checkpoint to resume from is of another model.

    mmengine would load what fits and go on with the rest untrained. Another plan fits, too: that
    is logged.
    """
    content = read_checkpoint(path, trust)
    given = content["state_dict"]
    saved = {key.removeprefix("module."): value for key, value in given.items()}  # of DDPStrategy
    current = (model.module if is_model_wrapper(model) else model).state_dict()
    wrong = [k for k in current if k not in saved] + [k for k in saved if k not in current]
    wrong += [k for k in current if k in saved and current[k].shape != saved[k].shape]
    if wrong:
        raise UserError(
            f"--resume: {path} was saved by another model ({len(wrong)} parameters differ: "
            f"{', '.join(wrong[:3])}); resume with the config, --ltm and --cfg-options of that "
            f"run, or use --checkpoint {path} to start from its weights"
        )
    _note_end(content["meta"], cfg, path)
    before, now = (_merging_options(text) for text in (content["meta"].get("cfg"), cfg.pretty_text))
    if before and now and before != now:
        log_warning(f"--resume: {path} was trained with {before}, it goes on with {now}")


def _note_end(meta: Mapping, cfg: Config, path: str) -> None:
    """Log that nothing is left to train, where that is so."""
    for count, key in (("epoch", "max_epochs"), ("iter", "max_iters")):
        most = (cfg.get("train_cfg") or {}).get(key)
        if most is not None and meta.get(count, 0) >= most:
            log_warning(
                f"--resume: {path} is the end of the run, {count} {meta[count]} of {most}: nothing "
                f"is left to train, unless you raise train_cfg.{key}"
            )


def _merging_options(config: str | None) -> str:
    """Plan and detail of the first backbone of ours in a config's text, which is not run."""
    try:
        nodes = list(ast.walk(ast.parse(config or "")))
    except SyntaxError:
        return ""
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if ".LTM" in options.get("type", ""):
            return ", ".join(f"{k}={options.get(k, '(default)')}" for k in ("keep", "detail"))
    return "no merging" if config else ""


def check_trained_classes(runner: Runner, checkpoint: str, trust: bool) -> None:
    """Refuse a test set that has the checkpoint's classes in another order.

    Args:
        runner: with its test data.
        checkpoint: what is evaluated.
        trust: see :func:`ltm_mm.checkpoints.read_state_dict`.

    Raises:
        UserError: names both orders.
    """
    if "://" in checkpoint or checkpoint.endswith((".safetensors", ".onnx", ".xml", ".pt2")):
        return
    saved = read_checkpoint(checkpoint, trust)
    meta = saved.get("meta") if isinstance(saved, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    trained = list((meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES") or ())
    metainfo = getattr(runner._test_dataloader.dataset, "metainfo", None) or {}
    tested = list(metainfo.get("classes") or ())
    if trained == tested or not trained or not tested:
        return
    lines = f"{checkpoint} was trained on the classes {preview(trained)}, "
    lines += f"the test set has {preview(tested)}"
    if sorted(trained) == sorted(tested):
        raise UserError(f"{lines}: give test_dataloader.dataset.metainfo.classes their order")
    log_warning(lines)

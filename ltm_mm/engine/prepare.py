"""A config as the command line changes it: plan, work dir, precision, ranks, outputs."""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook

from ..checks.outputs import check_file, check_folder
from ..checks.training import require
from ..errors import UserError
from .config import load_config
from .convert import parse_keep, set_detail, use_ltm
from .flexible import choose_strategy, is_flexible
from .ib_hook import use_ib
from .pictures import LabelMaps, Pictures
from .ranks import check_launcher, print_once, use_cpu_ranks

PICKLES = (".pkl", ".pickle")


def prepare(
    config: str,
    work_dir: str | None,
    ltm: str | None,
    cfg_options: Mapping[str, object] | None,
    launcher: str,
    ib: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    detail: str | None = None,
) -> Config:
    """The config as the command line changes it, and the process group where one is needed.

    Args: see :func:`.run.train`.

    Raises:
        UserError: there is no such config, or an option does not fit it.
    """
    cfg = load_config(config, deepcopy(cfg_options))  # merging options alters them
    require(cfg, "model")
    set_detail(cfg, detail, ltm)
    stem = Path(cfg.filename).stem
    if ltm is not None:
        for line in use_ltm(cfg, parse_keep(ltm)):
            print_once(line)
        # Runs with different plans must not resume from one another.
        stem += "_ltm-" + re.sub(r"[^\w.]+", "-", ltm).strip("-")
    if ib is not None:
        use_ib(cfg, ib)
        stem += f"_ib-{ib}"
    if work_dir or not cfg.get("work_dir"):
        cfg.work_dir = work_dir or os.path.join("work_dirs", stem)
    check_folder("--work-dir" if work_dir else "work_dir", cfg.work_dir)
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        require(cfg, "auto_scale_lr")
        cfg.auto_scale_lr.enable = True
    cfg.launcher = launcher
    check_launcher(launcher)
    if is_flexible(cfg):
        choose_strategy(cfg, launcher)
    if launcher != "none" and get_device() == "cpu":
        use_cpu_ranks(cfg)
    return cfg


def _use_amp(cfg: Config) -> None:
    if get_device() == "cpu":
        raise UserError("--amp needs a GPU, and none is visible; leave it out")
    require(cfg, "optim_wrapper")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def use_tta(cfg: Config) -> None:
    """Wrap the model as mmdet's and mmseg's own test tools do."""
    require(cfg, "tta_model", "tta_pipeline")
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = deepcopy(cfg.tta_pipeline)


def write_outputs(cfg: Config, out: str | None, show_dir: str | None, launcher: str) -> list[Hook]:
    """Have predictions and pictures of them written; what to register for that.

    Args:
        cfg: changed in place.
        out, show_dir, launcher: see :func:`.run.evaluate`.

    Raises:
        UserError: one of them cannot be written.
    """
    hooks: list[Hook] = []
    if show_dir:
        hooks.append(_draw_into(cfg, show_dir))
        if launcher != "none":
            print_once(
                "mmdet and mmseg draw the images of the first rank only; for all, use one process"
            )
    return hooks + _write_into(cfg, out) if out else hooks


def _draw_into(cfg: Config, folder: str) -> Hook:
    """A hook that writes pictures of all predictions to a folder."""
    check_folder("--show-dir", folder)
    scope = cfg.get("default_scope")
    if not cfg.get("visualizer"):
        drawer = "mmseg.SegLocalVisualizer" if scope == "mmseg" else "mmdet.DetLocalVisualizer"
        cfg.visualizer = dict(type=drawer, name="visualizer")
    options = (cfg.get("default_hooks") or {}).get("visualization") or {}
    return Pictures(folder, options.get("score_thr", 0.3))


def _write_into(cfg: Config, out: str) -> list[Hook]:
    """Have the predictions written: a pickle of all, or mmseg's label maps in a folder."""
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if not out.endswith(PICKLES) and cfg.get("default_scope") != "mmseg":
        raise UserError(f"--out {out}: the file's name must end in .pkl")
    if out.endswith(PICKLES):
        check_file("--out", out)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        dump_type = "mmdet.DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
        cfg.test_evaluator = [*evaluators, dict(type=dump_type, out_file_path=out)]
        return []
    check_folder("--out", out)
    return [LabelMaps(out)]

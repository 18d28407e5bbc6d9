"""Train and test from a config: what ``tools/train.py`` and ``tools/test.py`` call."""

import numbers
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checks.loaders import SKIPPED, build_loaders, missing
from ..checks.outputs import check_file, check_folder
from ..checks.reading import skipped
from ..checks.training import check_lengths, check_optimizer, require, require_file
from ..checks.weights import check_weights, options_named
from ..errors import UserError
from .build import drop_pretrained
from .commands import note_command
from .config import load_config
from .convert import parse_keep, use_ltm
from .flexible import build_model, choose_strategy, is_flexible
from .hooks import StartFrom, load
from .ib_hook import use_ib
from .pictures import LabelMaps, Pictures
from .ranks import check_launcher, print_once, use_cpu_ranks
from .resume import check_same_model, check_trained_classes, find_resume
from .steps import Watch, first_step

PICKLES = (".pkl", ".pickle")


def train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    checkpoint: str | None = None,
    trust_checkpoint: bool = False,
    ltm: str | None = None,
    ib: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    launcher: str = "none",
) -> Runner:
    """Train the model of a config.

    Args:
        config: see :func:`.config.load_config`.
        work_dir: for logs and checkpoints; default ``work_dirs/<config's name>``.
        resume: a checkpoint, or 'auto' for the newest readable one in ``work_dir``.
        checkpoint: weights to start from, of a backbone or of a whole model, plain or
            merging. Not used where ``resume`` finds something to go on from.
        trust_checkpoint: read files that may run code, see
            :func:`ltm_mm.checkpoints.read_state_dict`.
        ltm: exchange the backbone, see :func:`.convert.parse_keep`.
        ib: add the information-bottleneck loss, see :func:`.ib_hook.use_ib`.
        amp: mixed precision (GPU).
        auto_scale_lr: scale the learning rate with the batch, if the config allows it.
        cfg_options: changes to the config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        The runner, after training.

    Raises:
        UserError: for a mistake in the input; see also :func:`.errors.clean_errors`.
    """
    cfg = _prepare(config, work_dir, ltm, cfg_options, launcher, ib)
    require(cfg, "train_dataloader", "train_cfg", "optim_wrapper")
    check_lengths(cfg)
    for file in (checkpoint, cfg.get("load_from")):
        if file:
            require_file(file)
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        require(cfg, "auto_scale_lr")
        cfg.auto_scale_lr.enable = True
    cfg.load_from = find_resume(resume, cfg.work_dir, trust_checkpoint) or cfg.get("load_from")
    cfg.resume = resume is not None and cfg.load_from is not None
    resumed = cfg.load_from if cfg.resume else None
    if resumed or checkpoint:
        drop_pretrained(cfg)
    check_weights(cfg)
    runner = _build(cfg)
    note_command(cfg.work_dir)
    check_optimizer(cfg)
    build_model(runner, cfg.get("find_unused_parameters", False), testing=False)
    if resumed:
        check_same_model(runner.model, resumed, trust_checkpoint)
    elif checkpoint and is_flexible(cfg):  # before FSDP spreads the weights
        runner.model.init_weights()
        load(runner, checkpoint, trust_checkpoint)
    elif checkpoint:
        runner.register_hook(StartFrom(checkpoint, trust_checkpoint))
    watch = Watch()
    runner.register_hook(watch)
    with _files_named(cfg), options_named(cfg):
        build_loaders(runner, "train", "val")
        with first_step(watch):
            runner.train()
    left_out = skipped(os.path.join(runner.log_dir, SKIPPED))
    _report(runner, {"metrics": _last_metrics(runner), "left out": left_out})
    return runner


def evaluate(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    tta: bool = False,
    trust_checkpoint: bool = False,
    ltm: str | None = None,
    cfg_options: Mapping[str, object] | None = None,
    launcher: str = "none",
    bf16: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint with a config's test set.

    Args:
        config: see :func:`.config.load_config`.
        checkpoint: a whole model's, plain or merging; or a file of ``tools/export.py``.
        work_dir: for logs; default ``work_dirs/<config's name>``.
        out: a ``.pkl`` file for the predictions; with mmseg also a folder for label maps.
        show_dir: folder for pictures of the predictions.
        tta: test-time augmentation as the config sets it up.
        trust_checkpoint, ltm, cfg_options, launcher: see :func:`train`.
        bf16: compute in bfloat16; OpenVINO's files only.

    Returns:
        Metrics by name.

    Raises:
        UserError: see :func:`train`; also if the checkpoint is of another model.
    """
    cfg = _prepare(config, work_dir, ltm, cfg_options, launcher)
    require(cfg, "test_dataloader", "test_cfg", "test_evaluator")
    require_file(checkpoint)
    exported = checkpoint.endswith((".onnx", ".xml", ".pt2"))
    if exported or bf16:
        from ..export.evaluate import use_file  # not at the top: it imports from here

        use_file(cfg, checkpoint, {"--tta": tta, "--ltm": ltm}, bf16)
    drop_pretrained(cfg)
    hooks = [draw_into(cfg, show_dir)] if show_dir else []
    if show_dir and launcher != "none":
        print_once(
            "mmdet and mmseg draw the images of the first rank only; for all, use one process"
        )
    if out:
        hooks += _write_into(cfg, out)
    if tta:
        _use_tta(cfg)
    cfg.load_from, cfg.resume = None, False
    runner = _build(cfg)
    note_command(cfg.work_dir)
    build_model(runner, find_unused=False, testing=True)
    watch = Watch()
    for hook in (*hooks, watch):
        runner.register_hook(hook)
    if not exported:
        load(runner, checkpoint, trust_checkpoint, strict=True)
    with _files_named(cfg):
        build_loaders(runner, "test")
        check_trained_classes(runner, checkpoint, trust_checkpoint)
        with first_step(watch):
            metrics = runner.test()
    _report(runner, {"metrics": metrics, "pictures": show_dir, "predictions": out})
    return metrics


def draw_into(cfg: Config, folder: str) -> Hook:
    """A hook that writes pictures of all predictions to a folder."""
    check_folder("--show-dir", folder)
    scope = cfg.get("default_scope")
    if not cfg.get("visualizer"):
        kind = "mmseg.SegLocalVisualizer" if scope == "mmseg" else "mmdet.DetLocalVisualizer"
        cfg.visualizer = dict(type=kind, name="visualizer")
    own = (cfg.get("default_hooks") or {}).get("visualization") or {}
    return Pictures(folder, own.get("score_thr", 0.3))


def _prepare(
    config: str,
    work_dir: str | None,
    ltm: str | None,
    cfg_options: Mapping[str, object] | None,
    launcher: str,
    ib: str | None = None,
) -> Config:
    """The config as the command line changes it, and the process group where one is needed."""
    cfg = load_config(config, deepcopy(cfg_options))  # merging options alters them
    require(cfg, "model")
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
    cfg.launcher = launcher
    check_launcher(launcher)
    if is_flexible(cfg):
        choose_strategy(cfg, launcher)
    if launcher != "none" and get_device() == "cpu":
        use_cpu_ranks(cfg)
    return cfg


def _build(cfg: Config) -> Runner:
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


@contextmanager
def _files_named(cfg: Config) -> Iterator[None]:
    """Name the config's option beside a file that is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(missing(cfg, error)) from error


def _use_amp(cfg: Config) -> None:
    if get_device() == "cpu":
        raise UserError("--amp needs a GPU, and none is visible; leave it out")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def _use_tta(cfg: Config) -> None:
    """Wrap the model as mmdet's and mmseg's own test tools do."""
    require(cfg, "tta_model", "tta_pipeline")
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = deepcopy(cfg.tta_pipeline)


def _write_into(cfg: Config, out: str) -> list[Hook]:
    """Have the predictions written: a pickle of all, or mmseg's label maps in a folder."""
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if not out.endswith(PICKLES) and cfg.get("default_scope") != "mmseg":
        raise UserError(f"--out {out}: the file's name must end in .pkl")
    if out.endswith(PICKLES):
        check_file("--out", out)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        kind = "mmdet.DumpDetResults" if cfg.get("default_scope") == "mmdet" else "DumpResults"
        cfg.test_evaluator = [*evaluators, dict(type=kind, out_file_path=out)]
        return []
    check_folder("--out", out)
    return [LabelMaps(out)]


def _last_metrics(runner: Runner) -> dict[str, float]:
    """The newest validation metrics of a training run."""
    scalars = runner.message_hub.log_scalars
    named = {k[4:]: v.current() for k, v in scalars.items() if k.startswith("val/")}
    return {k: v for k, v in named.items() if not k.endswith("time")}


def _report(runner: Runner, results: Mapping[str, object]) -> None:
    """Say where everything is."""
    if runner.rank:
        return
    note = Path(runner.work_dir, "last_checkpoint")
    best = runner.message_hub.runtime_info.get("best_ckpt")
    metrics = results.get("metrics") or {}
    lines = {
        "work dir": runner.work_dir,
        "log": runner.log_dir,
        "checkpoint": note.read_text().strip() if note.is_file() else None,
        "best checkpoint": best,
        **results,
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if _number(v)),
    }
    print("\n".join(["Done.", *(f"  {k:<16}{v}" for k, v in lines.items() if v)]), flush=True)


def _number(value: object) -> bool:
    return isinstance(value, numbers.Real)  # NumPy's too, which mmseg gives

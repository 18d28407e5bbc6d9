"""Train and test from a config: prepare, check, build, load, run.

``tools/train.py`` and ``tools/test.py`` call :func:`train` and :func:`evaluate`.
"""

import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..checks.loaders import SKIPPED, build_loaders, naming_options
from ..checks.reading import skipped
from ..checks.training import check_testing, check_training
from ..checks.weights import check_weights
from ..errors import preview
from ..merging import merges
from .build import drop_pretrained
from .by_class import kept_by_class
from .commands import note_command
from .flexible import build_model
from .load import load_start, load_weights
from .prepare import prepare, use_tta, write_outputs
from .resume import check_trained_classes, use_resume
from .steps import first_step


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
    detail: str | None = None,
) -> Runner:
    """Train the model of a config.

    Args:
        config: see :func:`.config.load_config`.
        work_dir: for logs and checkpoints; default ``work_dirs/<config's name>``.
        resume: a checkpoint, or 'auto' for the newest readable one in ``work_dir``.
        checkpoint: weights to start from instead of the config's ``load_from``, of a backbone or
            of a whole model, plain or merging. Not used where ``resume`` finds a checkpoint.
        trust_checkpoint: read files that may run code, see
            :func:`ltm_mm.checkpoints.read_state_dict`.
        ltm: convert the backbone, see :func:`.convert.parse_keep`.
        ib: add the information-bottleneck loss, see :func:`.ib_hook.use_ib`.
        amp: mixed precision (GPU).
        auto_scale_lr: scale the learning rate with the batch, if the config allows it.
        cfg_options: changes to the config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        detail: a file of ``tools/learn.py``, which merging blocks start with.

    Returns:
        The runner, after training.

    Raises:
        UserError: for a mistake in the input; see also :func:`.errors.clean_errors`.
    """
    cfg = prepare(config, work_dir, ltm, cfg_options, launcher, ib, amp, auto_scale_lr, detail)
    check_training(cfg, checkpoint)
    resumed = use_resume(cfg, resume, trust_checkpoint)
    if checkpoint and not resumed:
        cfg.load_from = checkpoint  # the work dir's config says so
    runner = build_runner(cfg, pretrained=not cfg.load_from)
    load_start(runner, resumed, trust_checkpoint)
    with naming_options(cfg):
        build_loaders(runner, "train", "val")
        _announce(runner)
        with first_step(runner):
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
    detail: str | None = None,
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
        detail: a file of ``tools/learn.py``, learned on the checkpoint's weights.

    Returns:
        Metrics by name.

    Raises:
        UserError: see :func:`train`; also if the checkpoint is of another model.
    """
    cfg = prepare(config, work_dir, ltm, cfg_options, launcher, detail=detail)
    check_testing(cfg, checkpoint)
    exported = checkpoint.endswith((".onnx", ".xml", ".pt2"))
    if exported or bf16:
        from ..export.evaluate import use_file

        use_file(cfg, checkpoint, {"--tta": tta, "--ltm": ltm, "--detail": detail}, bf16)
    hooks = write_outputs(cfg, out, show_dir, launcher)
    if tta:
        use_tta(cfg)
    with _kept_config(cfg, exported):
        runner = build_runner(cfg, pretrained=False, testing=True)
    for hook in hooks:
        runner.register_hook(hook)
    if not exported:
        load_weights(runner, checkpoint, trust_checkpoint, strict=True)
    with naming_options(cfg):
        build_loaders(runner, "test")
        check_trained_classes(runner, checkpoint, trust_checkpoint)
        with first_step(runner), kept_by_class(runner, checkpoint):
            metrics = runner.test()
    results = {"metrics": metrics, "pictures": show_dir, "predictions": out}
    _report(runner, {"checkpoint": checkpoint, **results})
    return metrics


@contextmanager
def _kept_config(cfg: Config, keep: bool) -> Iterator[None]:
    """Leave a run's config in its work dir: that of a file has no model to train or to draw."""
    dumped = Path(cfg.work_dir, Path(cfg.filename).name)
    before = dumped.read_text() if keep and dumped.is_file() else None
    yield
    if before is not None:
        dumped.write_text(before)


def build_runner(cfg: Config, pretrained: bool, testing: bool = False) -> Runner:
    """The runner of a config, with its model built.

    Args:
        cfg: changed in place.
        pretrained: keep the config's pretrained weights, which a checkpoint would replace.
        testing: build it for a test alone.
    """
    if pretrained:
        check_weights(cfg)
    else:
        drop_pretrained(cfg)
    if testing:
        cfg.load_from, cfg.resume = None, False
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    note_command(cfg.work_dir, cfg.env_variables)
    find_unused = cfg.get("find_unused_parameters", False) and not testing
    build_model(runner, find_unused, testing)
    return runner


def _announce(runner: Runner) -> None:
    """Say what will be trained, on what, before the first step."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    backbone = getattr(model, "backbone", None)
    lines = {"model": f"{type(model).__name__}, {millions:.1f} million parameters"}
    if backbone is not None:
        keep = runner.cfg.model.backbone.get("keep", "-")
        merging = f", keep={keep!r}" if merges(backbone) else ", no merging"
        lines["backbone"] = type(backbone).__name__ + merging
    for name, loader in (
        ("training", runner._train_dataloader),
        ("validation", runner._val_dataloader),
    ):
        if isinstance(loader, DataLoader):
            dataset: Any = loader.dataset
            classes = (getattr(dataset, "metainfo", None) or {}).get("classes") or ()
            repeats = getattr(dataset, "times", 1)  # of a RepeatDataset
            count = f"{len(dataset) // repeats} images" + f" x {repeats}" * (repeats > 1)
            lines[name] = f"{count}, {len(classes)} classes: {preview(classes)}"
    lines["log, checkpoints"] = runner.work_dir
    print_log(
        "\n".join(["training starts:", *(f"  {k:<17}{v}" for k, v in lines.items())]), "current"
    )


def _last_metrics(runner: Runner) -> dict[str, float]:
    """The newest validation metrics of a training run."""
    scalars = runner.message_hub.log_scalars
    named = {k[4:]: v.current() for k, v in scalars.items() if k.startswith("val/")}
    return {k: v for k, v in named.items() if not k.endswith("time")}


def _report(runner: Runner, results: Mapping[str, Any]) -> None:
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
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if _is_number(v)),
    }
    print("\n".join(["Done.", *(f"  {k:<16}{v}" for k, v in lines.items() if v)]), flush=True)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)  # NumPy's too, which mmseg gives

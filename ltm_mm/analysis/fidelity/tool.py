"""What ``tools/fidelity.py`` does: a config's model on a folder of photos."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...checks.options import check_counts
from ...checks.outputs import check_folder
from ...engine.build import model_builder, named_config, scope_of
from ...engine.config import change_config
from ...engine.convert import parse_keep, set_detail
from ...engine.photos import (
    read_photos,
    save_sample,
    some_photos,
)
from ...engine.predictions import read_prediction
from ...errors import UserError
from ...presets import Keep

if TYPE_CHECKING:
    from mmengine.config import Config
from ..benchmark.latency import clock_of
from ..benchmark.latency import threads as use_threads
from .agreement import CONFIDENT
from .compare import BASELINES, PRESETS, ModelUnderTest, compare
from .report import Fidelity


def run_fidelity(
    config: str,
    checkpoint: str,
    photos: str,
    ltm: Sequence[str] = PRESETS,
    size: Sequence[int] | None = None,
    num_photos: int = 32,
    rounds: int = 5,
    baselines: Sequence[str] = BASELINES,
    threads: int | None = None,
    out: str = "work_dirs/fidelity",
    device: str = "cpu",
    cpu_time: bool = False,
    metric: bool = False,
    trust_checkpoint: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    detail: str | None = None,
) -> Fidelity:
    """Measure what merging changes in a config's model, print it, write JSON and picture.

    Args:
        config: a detector's, segmentor's or classifier's, see
            :func:`ltm_mm.engine.load_config`; or a backbone's name such as ``ltm-swin-t``.
        checkpoint: the trained model's.
        photos: a photo or a folder of them.
        ltm: plans, see :func:`ltm_mm.engine.parse_keep`.
        size: height and width that photos are brought to after the config's own test pipeline;
            None: as that leaves them.
        num_photos: how many, evenly spread over the folder.
        rounds, baselines, threads: see :func:`ltm_mm.fidelity`.
        out: folder for the files.
        device: 'cpu' or 'cuda'.
        cpu_time: the process's CPU seconds instead of wall time; one thread, CPU only.
        metric: also evaluate plain and every plan with the config's test set.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        cfg_options: changes to the config.
        detail: a file of ``tools/learn.py``.

    Returns:
        One row per model.

    Raises:
        UserError: for a mistake in the input, before anything is measured.
    """
    _check(size, num_photos, rounds, baselines, threads)
    check_folder("--out", out)
    clock = clock_of(cpu_time, threads, device)
    plans = {text: parse_keep(text) for text in ltm}
    if None in plans.values():
        raise UserError("--ltm none: the model without merging is always there; name plans")
    cfg = change_config(named_config(config), cfg_options or {})
    set_detail(cfg, detail, *ltm)
    files = some_photos(photos, num_photos)
    build = model_builder(cfg, checkpoint, trust=trust_checkpoint, device=device)
    with scope_of(cfg):
        tested = model_under_test(cfg, build)
        images = read_photos(cfg, files, size, device)
        with use_threads(threads):
            fidelity = compare(tested, images, plans, baselines, rounds, clock=clock)
    settings = dict(config=config, checkpoint=checkpoint, folder=photos, plans=list(plans))
    fidelity.metadata.update(settings)
    print(f"\n{_headline(fidelity)}\n\n{fidelity.table()}", flush=True)
    if any("AP" in k and math.isnan(v) for k, v in fidelity.rows[0].agreement.items()):
        print(f"\n-: the plain model detects too little with a score from {CONFIDENT:g} on")
    if metric:
        _evaluate(fidelity, config, checkpoint, out, trust_checkpoint, cfg_options, detail)
        print(f"\n{fidelity.table()}", flush=True)
    written = fidelity.save(Path(out, Path(config.rpartition("::")[2]).stem))
    print("\n" + "\n".join(f"  {file}" for file in written))
    return fidelity


def _check(
    size: Sequence[int] | None,
    num_photos: int,
    rounds: int,
    baselines: Sequence[str],
    threads: int | None,
) -> None:
    check_counts({"--size": size, "--num-photos": num_photos, "--threads": threads})
    if rounds < 0:
        raise UserError(f"--rounds must be 0 (no timing) or more, got {rounds}")
    if unknown := sorted({*baselines} - {*BASELINES}):
        raise UserError(f"--baselines takes {', '.join(BASELINES)}, got {unknown[0]}")


def model_under_test(cfg: "Config", build: Callable[[Keep], nn.Module]) -> ModelUnderTest:
    """The model, and how a photo goes through it."""
    plain = build(None)
    if "type" in cfg.model:
        return ModelUnderTest(plain, build, predict_sample, saved=save_sample)
    return ModelUnderTest(plain, build, lambda model, image: model(image))


def predict_sample(model: Any, sample: Mapping) -> object:
    """What mmdet's, mmseg's or mmpretrain's model predicts, at the photo's own size."""
    sample_out = model.test_step({key: [value] for key, value in sample.items()})[0].cpu()
    if "pred_label" in sample_out:
        return sample_out.pred_label.numpy()
    return read_prediction(sample_out, 0.0)


def _headline(fidelity: Fidelity) -> str:
    metadata = fidelity.metadata
    height, width = metadata["size"]
    return (
        f"{metadata['config']}, {metadata['photos']} photos of {metadata['folder']}, the first one "
        f"{height} x {width}, {metadata['cpu']}, {metadata['threads']} thread(s), "
        f"torch {metadata['torch']}"
    )


def _evaluate(
    fidelity: Fidelity,
    config: str,
    checkpoint: str,
    out: str,
    trust: bool,
    cfg_options: Mapping[str, object] | None,
    detail: str | None,
) -> None:
    """The config's own metrics of the plain model and of every plan."""
    from ...engine.run import evaluate  # which needs mmengine, as nothing else here does

    rows = [row for row in fidelity.rows if row.kind in ("plain", "plan")]
    for number, row in enumerate(rows):
        metrics = evaluate(
            config,
            checkpoint,
            work_dir=str(Path(out, f"metric_{number}")),
            trust_checkpoint=trust,
            ltm="none" if row.kind == "plain" else row.name,
            cfg_options=cfg_options,
            detail=None if row.kind == "plain" else detail,
        )
        row.metrics = {k: float(v) for k, v in metrics.items() if isinstance(v, numbers.Real)}

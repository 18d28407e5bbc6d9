"""What ``tools/export.py`` does: build, load, export, write, compare."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..analysis.baselines import build_models
from ..analysis.random_data import channels_of
from ..checkpoints import load_into
from ..engine.errors import UserError, naming
from ..engine.outputs import check_file
from .check import TOLERANCE, Difference, compare, other_sizes
from .onnx import run_onnx, save_onnx
from .program import SMALLEST, export_program
from .segmentor import Logits

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    config: str,
    checkpoint: str | None = None,
    format: str = "onnx",
    whole_model: bool = False,
    size: tuple[int, int] = (512, 512),
    ltm: str | None = None,
    out: str | None = None,
    check: bool = False,
    trust_checkpoint: bool = False,
) -> list[Difference]:
    """Export a backbone, or a segmentor whole, with a dynamic batch, height and width.

    Args:
        config, ltm, whole_model: see :func:`ltm_mm.analysis.baselines.build_models`.
        checkpoint: a whole model's or a backbone's; None: random weights.
        format: 'onnx' or 'torch' (a ``.pt2`` file of ``torch.export``).
        size: height and width that it is traced with; others are compared at, too.
        out: the file; None: ``work_dirs/export/<config's name>.onnx`` or ``.pt2``.
        check: load the file, and compare it with the model at several sizes.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.

    Returns:
        What the comparison found; nothing without ``check``.

    Raises:
        UserError: for a mistake in the input, or if the file differs from the model.
    """
    if min(size) < SMALLEST:
        raise UserError(f"--size must be {SMALLEST} or more, got {size[0]} {size[1]}")
    stem = Path(config.rpartition("::")[2]).stem + ("" if whole_model else "_backbone")
    path = Path(out) if out else Path("work_dirs", "export", stem).with_suffix(SUFFIXES[format])
    check_file("--out", path)
    (built,) = build_models(config, [] if ltm is None else [ltm], (), size, whole_model).values()
    if checkpoint is not None:
        with naming(checkpoint):
            load_into(built, checkpoint, trust=trust_checkpoint, strict=True)
    model, outputs = _prepared(built, whole_model)
    start = time.perf_counter()
    print(f"tracing {stem}, which takes a minute or so ...", flush=True)
    channels = channels_of(built)
    program = export_program(model, size, channels)
    if format == "onnx":
        print("writing ONNX, which takes as long again ...", flush=True)
        save_onnx(program, path, outputs)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path)
    weights = "random weights" if checkpoint is None else f"weights {Path(checkpoint).name}"
    taken = time.perf_counter() - start
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {weights}, after {taken:.0f} s")
    print(f"  image (batch, {channels}, height, width) -> {', '.join(outputs)}")
    return _checked(model, path, format, size, channels) if check else []


def _prepared(built: nn.Module, whole: bool) -> tuple[nn.Module, list[str]]:
    """The network of one tensor, and its outputs' names."""
    built.eval()
    if not whole:
        return built, [f"stage{i}" for i in built.out_indices]
    try:
        return Logits(built), ["logits"]
    except ValueError as error:
        raise UserError(f"--whole-model: {error}") from error


def _checked(
    model: nn.Module, path: Path, format: str, size: tuple[int, int], channels: int
) -> list[Difference]:
    run: Callable[[Tensor], object]
    run = run_onnx(path) if format == "onnx" else torch.export.load(path).module()
    name = "onnxruntime" if format == "onnx" else "the loaded program"
    print(f"largest difference between {name} and the model:", flush=True)
    found = []
    sizes = other_sizes(size, SMALLEST)
    for difference in compare(model, run, sizes, channels=channels):  # type: ignore[arg-type]
        print(f"  {difference}", flush=True)
        found.append(difference)
    worst = max(found, key=lambda difference: difference.largest)
    if not worst.largest <= TOLERANCE:
        raise UserError(f"--check: {path} differs from the model by more than 1e-4 at {worst}")
    print(f"all within {TOLERANCE:.0e}")
    return found

"""What ``tools/export.py`` does: build, load, export, write, compare."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from ..checks.outputs import check_file
from ..engine.build import AS_CONFIGURED, channels_of, model_builder, named_config
from ..engine.convert import parse_keep, set_detail
from ..errors import UserError
from .check import MASK_IOU, TOLERANCE, Difference, compare, other_sizes
from .files import RUNTIMES, SUFFIXES, import_onnxruntime, import_package, open_file
from .heads import WholeModel, whole_model
from .metadata import describe
from .onnx import require_onnx, save_onnx
from .openvino import save_openvino
from .program import SMALLEST, export_program, save_program

if TYPE_CHECKING:
    from mmengine.config import Config


def export(
    config: str,
    checkpoint: str | None = None,
    format: str = "onnx",
    whole_model: bool = False,
    size: Sequence[int] = (512, 512),
    ltm: str | None = None,
    out: str | None = None,
    check: bool = False,
    trust_checkpoint: bool = False,
    int8: int | None = None,
    detail: str | None = None,
) -> list[Difference]:
    """Export a backbone, detector or segmentor, with a dynamic batch, height and width.

    Args:
        config: see :func:`ltm_mm.engine.build.named_config`.
        ltm: what to keep, see :func:`ltm_mm.engine.parse_keep`; None: as the config has it.
        whole_model: with the heads, not the backbone alone.
        checkpoint: a whole model's or a backbone's; None: random weights.
        format: 'onnx', 'openvino' (an ``.xml`` file with its ``.bin``) or 'torch' (a ``.pt2``
            file of ``torch.export``).
        size: height and width that it is traced with; others are compared at, too.
        out: the file; None: ``work_dirs/export/<config's name>`` with the format's suffix.
        check: load the file, and compare it with the model at several sizes; with ``int8``
            evaluate both on the config's test data.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        detail: a file of ``tools/learn.py``, which goes into the exported one.
        int8: quantise to 8 bits, calibrated on so many images of the config's test data.

    Returns:
        What the comparison found; nothing without ``check``, or after an evaluation.

    Raises:
        UserError: for a mistake in the input, or if the file differs from the model.
    """
    size = (size[0], size[1])  # of a command line a list
    _check_size(size, SMALLEST)
    if int8 is not None and format != "openvino":
        raise UserError("--int8 quantises with NNCF for OpenVINO: it needs --format openvino")
    path = _path(config, format, whole_model, out)
    cfg = named_config(config)
    set_detail(cfg, detail, ltm)
    if whole_model and "type" not in cfg.model:
        raise UserError(f"{config} is a backbone; the whole model needs a detector's config")
    build = model_builder(
        cfg, checkpoint, backbone=not whole_model, trust=trust_checkpoint, strict=True
    )
    built = build(AS_CONFIGURED if ltm is None else parse_keep(ltm))
    model, outputs = _prepared(built, whole_model)
    smallest = getattr(model, "smallest", SMALLEST)
    _check_size(size, smallest)
    weights = "random weights" if checkpoint is None else f"weights {Path(checkpoint).name}"
    extra = model.metadata if isinstance(model, WholeModel) else {}
    extra = {**extra, "smallest": smallest}
    metadata = describe(cfg, built, outputs, extra, weights)
    _require(format, check, int8 is not None)
    calibration = None if int8 is None else _calibration(cfg, int8)
    start = time.perf_counter()
    print(f"tracing {path.stem}, which takes a minute or so ...", flush=True)
    channels = channels_of(built)
    program = export_program(model, size, channels, smallest)
    _save(program, path, outputs, metadata, calibration)
    taken = time.perf_counter() - start
    size_in_bytes = sum(f.stat().st_size for f in (path, path.with_suffix(".bin")) if f.is_file())
    print(f"{path}: {size_in_bytes / 2**20:.1f} MiB, {weights}, after {taken:.0f} s")
    print(f"  image (batch, {channels}, height, width) -> {', '.join(outputs)}")
    if check and int8 is not None and whole_model and checkpoint is not None:
        _print_cost(config, checkpoint, ltm, path)
        return []  # 8 bits are no rounding error
    return _checked(model, path, size, channels, int8 is not None) if check else []


def _check_size(size: tuple[int, int], smallest: int) -> None:
    if min(size) < smallest:
        raise UserError(f"--size must be {smallest} or more, got {size[0]} {size[1]}")


def _path(config: str, format: str, whole: bool, out: str | None) -> Path:
    """The file to write; it can be written, and its name is that of the format."""
    stem = Path(config.rpartition("::")[2]).stem + ("" if whole else "_backbone")
    path = Path(out) if out else Path("work_dirs", "export", stem + SUFFIXES[format])
    check_file("--out", path)
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"--out {out}: a file of --format {format} must end in {SUFFIXES[format]}")
    return path


def _require(format: str, check: bool, quantised: bool) -> None:
    """Say what is missing before minutes of tracing."""
    if format != "torch":
        require_onnx()
    if format == "openvino":
        import_package("openvino", "--format openvino")
    if format == "onnx" and check:
        import_onnxruntime("--check")
    if quantised:
        import_package("nncf", "--int8")


def _prepared(built: Any, whole: bool) -> tuple[nn.Module, list[str]]:
    """The network of one tensor, and its outputs' names."""
    built.eval()
    if not whole:
        return built, [f"stage{i}" for i in built.out_indices]
    try:
        model = whole_model(built)
    except ValueError as error:
        raise UserError(
            f"--whole-model: {error}; `python tools/export.py --list` prints what can be exported, "
            "and without --whole-model the backbone alone is"
        ) from error
    return model, list(model.outputs)


def _calibration(cfg: "Config", count: int) -> list[Tensor]:
    from .calibration import images  # which needs mmengine, as nothing else here does

    return images(cfg, count)


def _save(
    program: ExportedProgram,
    path: Path,
    outputs: Sequence[str],
    metadata: dict[str, str],
    calibration: Sequence[Tensor] | None,
) -> None:
    if path.suffix == ".pt2":
        save_program(program, path, metadata)
        return
    print("writing ONNX, which takes as long again ...", flush=True)
    if path.suffix == ".onnx":
        save_onnx(program, path, outputs, metadata)
    else:
        save_openvino(program, path, outputs, metadata, calibration)


def _print_cost(config: str, checkpoint: str, ltm: str | None, path: Path) -> None:
    """What 8 bits cost on the config's test data."""
    from ..engine.run import evaluate

    with tempfile.TemporaryDirectory() as folder:
        before = evaluate(config, checkpoint, str(Path(folder, "checkpoint")), ltm=ltm)
        after = evaluate(config, str(path), str(Path(folder, "int8")))
    print("what 8 bits cost on the test data:")
    for name in sorted(before.keys() & after.keys()):
        if "time" not in name and before[name] >= 0:  # -1: there are no such objects
            print(f"  {name:<20}{before[name]:.4f} -> {after[name]:.4f}")


def _checked(
    model: nn.Module, path: Path, size: tuple[int, int], channels: int, quantised: bool
) -> list[Difference]:
    file = open_file(path)
    print(f"largest difference between {RUNTIMES[path.suffix]} and the model:", flush=True)
    differences = []
    for difference in compare(
        model,
        file.run,
        other_sizes(size, int(file.metadata["smallest"])),
        channels=channels,
        metadata=file.metadata,
    ):
        print(f"  {difference}", flush=True)
        differences.append(difference)
    worst = max(differences, key=lambda difference: (not difference.equal, difference.largest))
    if quantised:
        return differences
    if not worst.equal:
        raise UserError(f"--check: {path} differs from the model by more than rounding at {worst}")
    limits = f"{TOLERANCE:.0e}" + ("" if worst.mask_iou is None else f", mask IoU {MASK_IOU}")
    alike = any(difference.of_model is not None for difference in differences)
    print(f"all within {limits}" + (", or as close as one of the two is to itself" * alike))
    return differences

"""Run every Swin config of the installed mmdet and mmseg with merging; print a summary.

Every config whose backbone can be converted is built at full width with merging, and runs one
forward pass and one loss step on random images with random annotations.

python tools/check_configs.py --out docs/configs.csv
"""

import argparse
import csv
import gc
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from tqdm import tqdm

from ltm_mm.checks.outputs import check_file
from ltm_mm.engine.build import drop_pretrained
from ltm_mm.engine.config import load_config
from ltm_mm.engine.convert import parse_keep, use_ltm
from ltm_mm.errors import UserError, clean_errors
from ltm_mm.presets import Keep

# Their text encoder is built from a hub's files; only the conversion can be checked.
NEEDS_DOWNLOAD = ("GLIP", "GroundingDINO")
# Read frames of a video, not images: mmdet's tracking pipeline feeds them.
VIDEO = ("Mask2FormerVideo",)
# Of the table; "config" is the first of "configs" that have the same model.
COLUMNS = ("config", "configs", "model", "built", "loss step", "prediction")


@dataclass
class Coverage:
    """The result of one config.

    Attributes:
        config: name as ``package::path``.
        model: type of the model, with its decode head for a segmentor.
        backbone: what was converted.
        losses: sum of the losses of one step; None if the step was not run.
        outputs: predictions for the image, e.g. '100 instances'; None if not run.
        problem: why something failed or was not run; None if everything ran.
    """

    config: str
    model: str
    backbone: str
    losses: float | None = None
    outputs: str | None = None
    problem: str | None = None

    @property
    def failed(self) -> bool:
        """Whether something that should run did not."""
        return self.problem is not None and not self.problem.startswith("not run")


def swin_configs(
    package: str, keep: Keep = "balanced", only: str = ""
) -> Iterator[tuple[str, Config, str]]:
    """Configs of an installed package whose backbone can be converted.

    Args:
        package: 'mmdet' or 'mmseg'.
        keep: the merging plan.
        only: part of the names (as yielded) of the configs.

    Yields:
        ``package::path``, the config with the backbone converted, and the conversion in a line.
    """
    root = Path(import_module(package).__file__ or "").parent / ".mim" / "configs"
    for path in sorted(root.rglob("*.py")):
        if "_base_" in path.parts:
            continue
        name = f"{package}::{path.relative_to(root)}"
        if only not in name:
            continue
        try:
            cfg = load_config(name)
            (change, *_) = use_ltm(cfg, keep)
        except UserError:
            continue  # another backbone, or no model at all
        yield name, cfg, change


def cover(packages: list[str], keep: Keep, only: str = "") -> list[tuple[Coverage, int]]:
    """Try one config of every model; progress on stderr.

    Args:
        packages: 'mmdet', 'mmseg'.
        keep: the merging plan.
        only: part of the names of the configs to try.

    Returns:
        Results, each with the number of configs of the same model.
    """
    groups: dict[str, list[tuple[str, Config, str]]] = {}
    for package in packages:
        for name, cfg, change in swin_configs(package, keep, only):
            groups.setdefault(model_key(cfg), []).append((name, cfg, change))
    rows = []
    for configs in tqdm(groups.values(), unit="model"):
        rows.append((try_config(*configs[0]), len(configs)))
        if rows[-1][0].failed:
            tqdm.write(f"{rows[-1][0].config}: {rows[-1][0].problem}", file=sys.stderr)
    return rows


def model_key(cfg: Config) -> str:
    """Equal for configs of the same model (schedules and data sets differ)."""
    model = cfg.model.to_dict()
    model.pop("init_cfg", None)
    model["backbone"].pop("init_cfg", None)
    return repr((cfg.get("default_scope"), model))


def try_config(name: str, cfg: Config, change: str, size: int = 128) -> Coverage:
    """Build a config's model and run a loss step and a prediction.

    Args:
        name, cfg, change: from :func:`swin_configs`.
        size: side of the random square images, in pixels.

    Returns:
        What happened; a failure is reported in it, not raised.
    """
    head = cfg.model.get("decode_head")
    model_type = f"{cfg.model.type} + {head.type}" if head and "type" in head else cfg.model.type
    result = Coverage(name, model_type, change)
    if cfg.model.type in NEEDS_DOWNLOAD:
        result.problem = "not run: its text encoder has to be downloaded"
        return result
    if cfg.model.type in VIDEO:
        result.problem = "not run: a video model"
        return result
    try:
        init_default_scope(cfg.get("default_scope", "mmdet"))
        torch.manual_seed(0)
        cfg.model.data_preprocessor.pop("batch_augments", None)  # would pad to 1024 x 1024
        if cfg.model.get("num_queries", 0) > 300:  # needs as many places to choose from
            size = max(size, 256)
        drop_pretrained(cfg)
        model = MODELS.build(cfg.model)
        if hasattr(model, "level_embed"):  # of DETR's kin: until then what the memory held
            model.init_weights()  # others would have scores below their thresholds: no masks
        run = _run_segmentor if name.startswith("mmseg") else _run_detector
        result.losses, result.outputs = run(model, cfg, size)
    except Exception as error:  # reported in the table
        result.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not _builds_plain(name):
            result.problem = f"not run: cannot be built without merging either ({result.problem})"
    gc.collect()
    return result


def _builds_plain(name: str) -> bool:
    """Whether a config's model can be built as it is shipped."""
    try:
        MODELS.build(load_config(name).model)
    except Exception:  # whatever it is, it is not merging's
        return False
    return True


def _run_detector(model: Any, cfg: Config, size: int) -> tuple[float, str]:
    """Loss of a step and predictions of an mmdet model."""
    from mmdet.testing import demo_mm_inputs

    panoptic = "panoptic_head" in cfg.model
    things = cfg.model.panoptic_head.num_things_classes if panoptic else 80
    data = demo_mm_inputs(
        2,
        (3, size, size),
        num_items=[3, 3],
        num_classes=min(things, 80),
        with_mask=panoptic or "mask" in str(cfg.model).lower(),
        with_semantic=panoptic,
    )
    losses = model.train().forward(**model.data_preprocessor(data, True), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    with torch.no_grad():
        model.eval()
        data = {k: v[:1] for k, v in data.items()}
        data = model.data_preprocessor(data, False)
        if "'num_classes': 13204" in str(cfg.model):
            model.forward(**data, mode="tensor")
            return total.item(), "raw outputs (untrained, NMS over 13204 classes takes minutes)"
        sample = model.forward(**data, mode="predict")[0]
    if "pred_panoptic_seg" in sample:
        return total.item(), f"panoptic map {tuple(sample.pred_panoptic_seg.sem_seg.shape[-2:])}"
    return total.item(), f"{len(sample.pred_instances)} instances"


def _run_segmentor(model: Any, cfg: Config, size: int) -> tuple[float, str]:
    """Loss of a step and prediction of an mmseg model."""
    from mmseg.structures import SegDataSample

    classes = model.decode_head.num_classes
    channels = 6 if cfg.model.get("backbone", {}).get("in_channels") == 6 else 3
    channels = 6 if "DualInput" in cfg.model.data_preprocessor.type else channels
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, size, size)))
        samples.append(sample)
    model.data_preprocessor.size = (size, size)
    data = dict(
        inputs=[torch.randint(0, 255, (channels, size, size), dtype=torch.uint8) for _ in samples],
        data_samples=samples,
    )
    losses = model.train().forward(**model.data_preprocessor(data, True), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    with torch.no_grad():
        model.eval()
        model.test_cfg = ConfigDict(mode="whole")
        data = {k: v[:1] for k, v in data.items()}
        model.data_preprocessor.test_cfg = None
        sample = model.forward(**model.data_preprocessor(data, False), mode="predict")[0]
    return total.item(), f"label map {tuple(sample.pred_sem_seg.data.shape[-2:])}"


def to_cells(row: Coverage, count: int) -> list[str]:
    """A row of the table, with the columns ``COLUMNS``.

    Args:
        row: the result.
        count: configs of the same model.
    """
    built = "yes" if row.losses is not None else row.problem or ""
    loss = "-" if row.losses is None else "finite" if row.losses == row.losses else "NaN"
    return [row.config, str(count), row.model, built, loss, row.outputs or "-"]


def summarize(table: Iterable[list[str]]) -> str:
    """A Markdown table with one row per package and outcome.

    Args:
        table: rows as :func:`to_cells` makes them.
    """
    groups: dict[tuple[str, str], tuple[list[str], int]] = {}
    for config, count, model, built, _, _ in table:
        package, outcome = config.partition("::")[0], "ran" if built == "yes" else built
        models, total = groups.get((package, outcome), ([], 0))
        models += [] if model in models else [model]
        groups[package, outcome] = models, total + int(count)
    lines = ["| package | models | configs | result |", "|---|---|---|---|"]
    for (package, outcome), (models, total) in sorted(groups.items(), key=lambda item: item[0][0]):
        lines.append(
            f"| {package} | {', '.join(sorted(models, key=str.lower))} | {total} | {outcome} |"
        )
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ltm", default="balanced", metavar="KEEP", help="preset, number or plan")
    add("--package", nargs="+", default=["mmdet", "mmseg"], help="whose configs")
    add("--only", default="", help="only configs whose name contains this")
    add("--out", metavar="FILE", help="also write a CSV file, one row per model")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 if a config that could be run failed."""
    args = parse_args()
    with clean_errors():
        if args.out:
            check_file("--out", args.out)
        rows = cover(args.package, parse_keep(args.ltm), args.only)
    table = [to_cells(*row) for row in rows]
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *table])
    print(summarize(table))
    return int(any(row.failed for row, _ in rows))


if __name__ == "__main__":
    sys.exit(main())

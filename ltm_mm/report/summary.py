"""A run's config in a few lines, and its metrics under readable names."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..registry import MODELS
from .work_dir import Run

SEGMENTATION = {"aAcc": "pixel accuracy", "mIoU": "mIoU", "mAcc": "mean class accuracy"}  # percent
COCO = {"bbox": "box", "segm": "mask", "proposal": "proposal"}
SIZES = {"": "", "50": "50", "75": "75", "s": " small", "m": " medium", "l": " large"}


def summary(run: Run) -> dict[str, str]:
    """What one asks about a run first: label -> value; what the config lacks is left out."""
    cfg = run.cfg
    model = cfg.model
    lines = {
        "model": _model(model),
        "backbone": _backbone(model.get("backbone") or {}),
        "merging": _describe_merging(model.get("backbone") or {}),
        "starts from": _start(run.start or cfg),
        "data": _data(cfg),
        "image size": _size(cfg),
        "batch": _batch(cfg),
        "optimiser": _optimizer(cfg),
        "schedule": _schedule(cfg),
        "seed": str((cfg.get("randomness") or {}).get("seed", "")),
        **run.environment,
    }
    return {label: value for label, value in lines.items() if value and value != "None"}


def metric_label(name: str) -> str:
    """``coco/bbox_mAP_s`` -> ``box AP small``, ``mIoU`` -> ``mIoU, %``; any other name as it is."""
    if name in SEGMENTATION:
        return f"{SEGMENTATION[name]}, %"
    match = re.fullmatch(r"coco/(\w+?)_mAP_?(\w*)", name)
    if match and match[1] in COCO and match[2] in SIZES:
        return f"{COCO[match[1]]} AP{SIZES[match[2]]}"
    return name


def metric_table(runs: Sequence[Run]) -> list[tuple[str, list[str], int | None]]:
    """Rows of the final metrics: label, a cell per run, place of the best one of several."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = []
    for name in names:
        values = [run.metrics.get(name) for run in runs]
        known = [v for v in values if v is not None]
        distinct = len(runs) > 1 and len(set(known)) > 1 and not _is_loss(name)
        best = values.index(max(known)) if distinct else None
        digits = 2 if max(abs(v) for v in known) > 1 else 3
        cells = ["–" if v is None else f"{v:.{digits}f}" for v in values]
        rows.append((metric_label(name), cells, best))
    return rows


def _is_loss(name: str) -> bool:
    return "loss" in name.lower() or "error" in name.lower()


def _type(node: Mapping[str, Any] | None) -> str:
    """Short name of a config node's type, which may be a class."""
    node_type = (node or {}).get("type", "")
    return node_type.rpartition(".")[2] if isinstance(node_type, str) else node_type.__name__


def _model(model: Mapping[str, Any]) -> str:
    parts = [_type(model.get(key)) for key in ("neck", "decode_head", "bbox_head", "roi_head")]
    inside = ", ".join(part for part in parts if part)
    return f"{_type(model)} ({inside})" if inside else _type(model)


def _backbone(backbone: Mapping[str, Any]) -> str:
    keys = ("arch", "model_name", "depth", "embed_dims", "depths", "window_size")
    return ", ".join([_type(backbone), *(f"{k} {backbone[k]}" for k in keys if k in backbone)])


def _describe_merging(backbone: Mapping[str, Any]) -> str:
    if "ltm_mm" not in str(backbone.get("type")):
        return "none"
    backbone_type = (
        MODELS.get(backbone["type"]) if isinstance(backbone["type"], str) else backbone["type"]
    )
    known = inspect.signature(backbone_type).parameters
    keep = backbone.get("keep", known["keep"].default)
    return "none" if keep is None else f"keep {keep}"


def _start(cfg: Mapping[str, Any]) -> str:
    pretrained = (cfg["model"].get("backbone") or {}).get("init_cfg")
    if isinstance(pretrained, Mapping):
        pretrained = pretrained.get("checkpoint")
    return str(cfg.get("load_from") or pretrained or "random weights")


def _nodes(node: object) -> Iterator[Mapping[str, Any]]:
    """All dicts of a config, the outer ones first."""
    if isinstance(node, Mapping):
        yield node
        for child in node.values():
            yield from _nodes(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _nodes(child)


def _data(cfg: Mapping[str, Any]) -> str:
    node = (cfg.get("train_dataloader") or cfg.get("test_dataloader") or {}).get("dataset") or {}
    inner = [n for n in _nodes(node) if "pipeline" in n or "data_root" in n]
    chosen = inner[-1] if inner else node
    root = chosen.get("data_root")
    return f"{_type(chosen)}, {root}" if root else _type(chosen)


def _size(cfg: Mapping[str, Any]) -> str:
    for key in ("train_dataloader", "test_dataloader"):
        for node in _nodes((cfg.get(key) or {}).get("dataset")):
            size = node.get("scale") or node.get("crop_size")
            if size:
                return " × ".join(map(str, size)) if _flat(size) else str(size)
    return ""


def _flat(size: object) -> bool:
    return isinstance(size, (list, tuple)) and all(isinstance(part, int) for part in size)


def _batch(cfg: Mapping[str, Any]) -> str:
    return str((cfg.get("train_dataloader") or {}).get("batch_size", ""))


def _optimizer(cfg: Mapping[str, Any]) -> str:
    wrapper = cfg.get("optim_wrapper") or {}
    optimizer = wrapper.get("optimizer") or {}
    if not optimizer:
        return ""
    keys = {"lr": "learning rate", "weight_decay": "weight decay"}
    named = [f"{label} {optimizer[key]:g}" for key, label in keys.items() if key in optimizer]
    precision = ["mixed precision"] if "Amp" in _type(wrapper) else []
    return ", ".join([_type(optimizer), *named, *precision])


def _schedule(cfg: Mapping[str, Any]) -> str:
    loop = cfg.get("train_cfg") or {}
    length = loop.get("max_epochs"), loop.get("max_iters")
    return f"{length[0]} epochs" if length[0] else f"{length[1]} steps" if length[1] else ""

"""Whether the annotations that pipelines load are those that the model is trained on."""

import re
from typing import Any

from mmengine.config import Config
from torch import nn

from ..errors import UserError
from .options import flatten

FLAGS = {"with_bbox": "boxes", "with_label": "labels", "with_mask": "masks"}


def loads(dataset: Any) -> set[str]:
    """Which of ``FLAGS`` the steps of a data set's own pipeline have."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    return {flag for flag in FLAGS for step in steps if getattr(step, flag, False)}


def keeps_run_lengths(dataset: Any) -> bool:
    """Whether masks that are run-length codes are loaded as such, and not passed over."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    return all(getattr(step, "poly2mask", True) for step in steps)


def boxes_only(cfg: Config, split: str) -> str:
    """How to do without masks, for a message: all options at once, as one types them.

    Args:
        cfg: of a detector.
        split: that masks are lacking in. If it is not the one that is trained on, the model may
            keep its mask head, and the other splits their masks.
    """
    roi_head = (cfg.get("model") or {}).get("roi_head")
    head = (roi_head or {}).get("mask_head")
    if head and split != "train":
        return f"measure boxes alone, --cfg-options {' '.join(_of_masks(cfg, split))}"
    if roi_head is None:  # whose heads may need masks whatever its options
        return "use a detector without masks"
    options = ["model.roi_head.mask_head=None"] * bool(head)
    options += _of_masks(cfg, "(train|val|test)")
    return f"use a detector without masks, --cfg-options {' '.join(options)}"


def _of_masks(cfg: Config, split: str) -> list[str]:
    """Options that keep masks from being loaded and measured in some splits."""
    options = []
    for key, value in flatten(cfg):
        if re.match(rf"{split}_dataloader\..*\.with_mask$", key) and value:
            options.append(f"{key}=False")
        elif re.match(rf"{split}_evaluator\b.*\bmetric(\.\d+)?$", key) and value == "segm":
            options.append(re.sub(r"\.\d+$", "", key) + "=bbox")
        elif key.endswith(".save_best") and "segm" in str(value) and split != "test":
            options.append(f"{key}={str(value).replace('segm', 'bbox')}")
    return options


def check_labels_loaded(dataset: Any, path: str, cfg: Config) -> None:
    """Refuse a pipeline of mmseg that loads no label maps, where they are needed.

    Args:
        dataset: as built.
        path: its dotted key in the config.
        cfg: the whole config.

    Raises:
        UserError: names the pipeline.
    """
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    names = [type(step).__name__ for step in steps]
    split = path.partition("_")[0]
    predicts = any(
        key.endswith("format_only") and value
        for key, value in flatten(cfg.get(f"{split}_evaluator") or {})
    )
    packs = any(name.startswith("Pack") for name in names)
    if packs and not predicts and not any("Annotation" in name for name in names):
        raise UserError(
            f"{path}.pipeline has no LoadAnnotations step, which loads the label maps: its steps "
            f"are {', '.join(names)}"
        )


def check_loaded(model: nn.Module, dataset: Any, path: str, cfg: Config) -> None:
    """Refuse a training pipeline that does not load what the model's heads are trained on.

    Args:
        model: a detector.
        dataset: that it is trained on, as built.
        path: its dotted key in the config.
        cfg: the whole config.

    Raises:
        UserError: names split, step and option of all that is lacking.
    """
    boxes = getattr(model, "with_bbox", False)
    needed = {"with_bbox": boxes or getattr(model, "with_rpn", False), "with_label": boxes}
    needed["with_mask"] = getattr(model, "with_mask", False)
    loaded = loads(dataset)
    lacking = [flag for flag, wanted in needed.items() if wanted and flag not in loaded]
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    packs = any(type(step).__name__.startswith("Pack") for step in steps)
    if not lacking or not (packs or loaded):  # the steps of a mixing wrapper may follow
        return
    box_steps = [i for i, step in enumerate(steps) if hasattr(step, "with_bbox")]
    what = " and ".join(FLAGS[flag] for flag in lacking)
    line = f"the model has heads for {what}, but no LoadAnnotations step of {path}.pipeline has "
    line += " and ".join(f"{flag}=True" for flag in lacking)
    if box_steps:
        place = f"{path}.pipeline.{box_steps[0]}"
        line += ": set " + " ".join(f"{place}.{flag}=True" for flag in lacking)
    if lacking == ["with_mask"]:
        line += f"{',' if box_steps else ': add it,'} or {boxes_only(cfg, 'train')}"
    raise UserError(line)

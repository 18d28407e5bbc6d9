"""What a file says of itself, so that it alone is enough to run it.

One entry per key, each in JSON: ONNX's ``metadata_props``; the same as one JSON object in
OpenVINO's ``rt_info`` (``ltm_mm``, ``about``), and in ``ltm_mm.json`` inside a ``.pt2`` file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import __version__
from ..engine.photos import class_names

if TYPE_CHECKING:
    from mmengine.config import Config

TASKS = {  # first outputs -> what the file does
    "masks": "instance segmentation",
    "boxes": "detection",
    "logits": "semantic segmentation",
    "stage": "features of a backbone",
}


def describe(
    cfg: "Config", model: nn.Module, outputs: list[str], extra: Mapping[str, object], weights: str
) -> dict[str, str]:
    """What a file says.

    Args:
        cfg: of the model.
        model: a whole model, whose data preprocessor is read, or a backbone.
        outputs: names of the results.
        extra: more of it, as the adapter of its head says.
        weights: name of the checkpoint.
    """
    task = next(name for key, name in TASKS.items() if any(o.startswith(key) for o in outputs))
    facts: dict[str, Any] = {
        "made_by": f"ltm_mm {__version__}",
        "config": Path(cfg.filename).name if cfg.filename else "",
        "weights": weights,
        "task": task,
        "outputs": outputs,
        **_preprocessing(model),
        "resize": _resize(cfg),
        "classes": class_names(cfg),
        **extra,
    }
    return {key: json.dumps(value) for key, value in facts.items() if value is not None}


def read_metadata(entries: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a file from its entries; none of a file of another program."""
    return {k: json.loads(v) for k, v in entries.items()} if "made_by" in entries else {}


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    """Of images in RGB or BGR with values 0..255: (image - mean) / std."""
    made = getattr(model, "data_preprocessor", None)
    if made is None or not hasattr(made, "mean"):
        return {}
    # mmcv reads images as BGR, whatever reads them.
    swapped = bool(getattr(made, "_channel_conversion", getattr(made, "channel_conversion", False)))
    return {
        "mean": [float(x) for x in made.mean.flatten()],
        "std": [float(x) for x in made.std.flatten()],
        "channels": "RGB" if swapped else "BGR",
    }


def _pipeline(cfg: "Config") -> list[Mapping]:
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return [step for step in dataset.get("pipeline") or [] if isinstance(step, Mapping)]


def _resize(cfg: "Config") -> dict[str, object] | None:
    """The size that images are brought to before: width and height, and whether they fit in it."""
    for step in _pipeline(cfg):
        if str(step.get("type", "")).endswith("Resize") and step.get("scale"):
            return {"scale": list(step["scale"]), "keep_ratio": bool(step.get("keep_ratio"))}
    return None

"""Exported files as models of mmdet and mmseg, for the configs' own evaluators."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor

from ..engine.photos import class_names
from ..errors import UserError, preview
from ..registry import MODELS
from .files import ExportedFile, open_file
from .reference import paste, rescaled


def use_file(
    cfg: Config, path: str, options: Mapping[str, Any] | None = None, bf16: bool = False
) -> None:
    """Put an exported file in the place of a config's model.

    Args:
        cfg: changed in place.
        path: of the file.
        options: of the command line that would change the model: name -> value.
        bf16: see :func:`.files.open_file`.

    Raises:
        UserError: if the file is none of this config, or ``bf16`` is no option of its runtime.
    """
    for option, value in (options or {}).items():
        if value:
            raise UserError(f"{option} changes the model, and {path} is as it was exported")
    try:
        metadata = _opened(path, bf16).metadata
    except ValueError as error:
        raise UserError(str(error)) from error
    if not metadata:
        raise UserError(
            f"{path} was not written by tools/export.py: it does not say how it is to be run"
        )
    segments = cfg.get("default_scope") == "mmseg"
    task = str(metadata["task"])
    evaluated = ("semantic segmentation",) if segments else ("detection", "instance segmentation")
    if task not in evaluated:
        raise UserError(
            f"{path} does {task}, which is not what {cfg.filename} evaluates; export with "
            f"python tools/export.py {cfg.filename} CHECKPOINT --whole-model"
        )
    classes, theirs = class_names(cfg), metadata.get("classes")
    if classes and theirs and classes != theirs:
        raise UserError(
            f"{path} knows {len(theirs)} classes ({preview(theirs, 3)}), the test data of "
            f"{cfg.filename} {len(classes)} ({preview(classes, 3)}): it was exported from another "
            "config"
        )
    model_type = "FileSegmentor" if segments else "FileDetector"
    preprocessor = dict(cfg.model.get("data_preprocessor") or {})
    tests = dict(cfg.model.get("test_cfg") or dict(mode="whole"))
    cfg.model = dict(
        type=f"ltm_mm.{model_type}", path=str(Path(path)), bf16=bf16, data_preprocessor=preprocessor
    )
    if segments:
        cfg.model["test_cfg"] = tests


def _opened(path: str, bf16: bool) -> ExportedFile:
    """A file, opened once for both questions: what is it, and what does it find."""
    return _open(path, bf16, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)


@lru_cache(maxsize=1)
def _open(path: str, bf16: bool, _: int) -> ExportedFile:
    return open_file(path, bf16=bf16)


class FileDetector(BaseModel):
    """An exported detector, run image by image as it comes out of mmdet's preprocessor.

    Args:
        path: of the file.
        data_preprocessor: as in the config of the detector.
        bf16: see :func:`.files.open_file`.
    """

    def __init__(self, path: str, data_preprocessor: Mapping, bf16: bool = False) -> None:
        super().__init__(dict(data_preprocessor))
        self.file = _opened(path, bf16)

    def forward(self, inputs: Tensor, data_samples: Sequence, mode: str = "tensor") -> list:
        """Detections in the original images, in mmdet's samples; ``mode`` must be 'predict'."""
        if mode != "predict":
            raise ValueError(f"an exported file can predict only, got mode {mode!r}")
        return [
            self._predict(image, sample)
            for image, sample in zip(inputs.cpu(), data_samples, strict=True)
        ]

    def _predict(self, image: Tensor, sample: Any) -> Any:
        from mmengine.structures import InstanceData

        height, width = size = tuple(sample.img_shape[:2])
        outputs = self.file.run(image[None, :, :height, :width].contiguous())
        boxes, scores, labels = (out[0] for out in outputs[:3])
        there = labels >= 0
        scale = torch.tensor(sample.scale_factor[:2]).repeat(2).to(boxes)
        instances = InstanceData(
            bboxes=boxes[there] / scale, scores=scores[there], labels=labels[there]
        )
        if len(outputs) > 3:
            masks, metadata = outputs[3][0][there], self.file.metadata
            original = tuple(sample.ori_shape[:2])
            if metadata["masks"] == "box":
                instances.masks = paste(masks, instances.bboxes, metadata, size, original)
            else:
                instances.bboxes, instances.scores, instances.masks = rescaled(
                    masks, instances.scores, metadata, size, original
                )
        sample.pred_instances = instances
        return sample


@MODELS.register_module(name="FileDetector")
def _detector(**options: Any) -> FileDetector:
    return FileDetector(**options)


@MODELS.register_module(name="FileSegmentor")
def _segmentor(path: str, bf16: bool = False, **options: Any) -> BaseModel:
    """mmseg's own segmentor around an exported file: its padding, windows and label maps."""
    from mmseg.models import EncoderDecoder

    class FileSegmentor(EncoderDecoder):
        def __init__(self) -> None:
            BaseModel.__init__(self, dict(options["data_preprocessor"]))
            self.file = _opened(path, bf16)
            metadata = self.file.metadata
            self.test_cfg = Config(options["test_cfg"])
            self.align_corners = metadata["align_corners"]
            self.out_channels = metadata["channels_out"]
            self.decode_head = SimpleNamespace(threshold=metadata["threshold"])

        def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
            return self.file.run(inputs.cpu().contiguous())[0]

    return FileSegmentor()

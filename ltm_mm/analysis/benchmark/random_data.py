"""Random images with random annotations, ready for a built mmdet or mmseg model."""

from typing import Any

import torch
from torch import nn

from ...engine.build import channels_of


def random_data(model: Any, batch: int, size: tuple[int, int], training: bool) -> dict:
    """Inputs and data samples as the model's ``forward`` takes them.

    Args:
        model: a detector or segmentor, with its ``data_preprocessor``.
        batch: images.
        size: height and width in pixels.
        training: normalised and batched as for training.

    Returns:
        ``dict(inputs=..., data_samples=...)``; ten objects per image for a detector.
    """
    make = _segmentor_data if hasattr(model, "decode_head") else _detector_data
    return model.data_preprocessor(make(model, batch, size), training)


def _detector_data(model: Any, batch: int, size: tuple[int, int]) -> dict:
    from mmdet.testing import demo_mm_inputs

    panoptic = getattr(model, "panoptic_head", None)
    return demo_mm_inputs(
        batch,
        (channels_of(model), *size),
        num_items=[10] * batch,
        num_classes=_classes(model) if panoptic is None else min(panoptic.num_things_classes, 80),
        with_mask=True,
        with_semantic=panoptic is not None,
        device=str(next(model.parameters()).device),
    )


def _classes(model: Any) -> int:
    """Classes that all heads of a detector know; an RPN's is objectness."""
    heads = (module for name, module in model.named_modules() if "rpn" not in name)
    counts = [count for head in heads if type(count := getattr(head, "num_classes", 0)) is int]
    return min([80, *(count for count in counts if count > 0)])


def _segmentor_data(model: Any, batch: int, size: tuple[int, int]) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        labels = torch.randint(0, _head(model).num_classes, (1, *size))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    model.data_preprocessor.size = size  # what it pads to: nothing
    images = [
        torch.randint(0, 255, (channels_of(model), *size), dtype=torch.uint8) for _ in samples
    ]
    return dict(inputs=images, data_samples=samples)


def _head(model: Any) -> Any:
    """The last decode head, of one or several."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head

"""mmseg's segmentors: images in, logits of the same size out."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .common import WholeModel


class Logits(WholeModel):
    """mmseg's encoder and decoder, without what happens before and after them.

    Args:
        model: an ``EncoderDecoder`` of mmseg; put in eval mode.

    Raises:
        ValueError: for models and heads that predict in a way of their own.
    """

    outputs = ("logits",)

    def __init__(self, model: Any) -> None:
        _check(model)
        super().__init__(model)
        self.divisor = test_divisor(model)
        self.align_corners = bool(model.align_corners)
        self.metadata = dict(
            align_corners=self.align_corners,
            channels_out=model.out_channels,
            threshold=model.decode_head.threshold or 0.0,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images.

        Args:
            image: ``(B, 3, H, W)``, as the model's ``data_preprocessor`` gives them.

        Returns:
            ``(B, classes, H, W)``.
        """
        padded = self.padded(image)
        logits = self.model(padded, mode="tensor")
        logits = F.interpolate(
            logits, padded.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        return logits if self.divisor == 1 else logits[..., : image.shape[2], : image.shape[3]]


def test_divisor(model: Any) -> int:
    """Steps that mmseg pads images to while testing: only where the preprocessor has a test_cfg.

    Raises:
        ValueError: if it pads to a size.
    """
    tests = model.data_preprocessor.test_cfg or {}
    if tests.get("size"):
        raise ValueError(
            f"data_preprocessor.test_cfg pads images to size={tests['size']}: only size_divisor "
            "can be exported"
        )
    return tests.get("size_divisor") or 1


def _check(model: Any) -> None:
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    checks = [(model, EncoderDecoder, ("encode_decode", "extract_feat"))]
    checks += [(model.decode_head, BaseDecodeHead, ("predict", "predict_by_feat"))]
    for part, base, methods in checks:
        if any(getattr(type(part), name, None) is not getattr(base, name) for name in methods):
            raise ValueError(f"{type(part).__name__} predicts in a way of its own")

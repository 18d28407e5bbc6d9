"""A whole segmentor as a network of one tensor: images in, logits of the same size out."""

import torch.nn.functional as F
from torch import Tensor, nn


class Logits(nn.Module):
    """mmseg's encoder and decoder, without what happens before and after them.

    Args:
        model: an ``EncoderDecoder`` of mmseg; put in eval mode.

    Raises:
        ValueError: if the model is none.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(getattr(model, "decode_head", None), nn.Module):
            raise ValueError(
                f"{type(model).__name__} has no decode_head: whole models can be exported from "
                "mmseg's segmentors only; leave --whole-model out to export the backbone"
            )
        self.model = model.eval()
        self.align_corners = bool(getattr(model, "align_corners", False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images.

        Args:
            x: ``(B, 3, H, W)``, as the model's ``data_preprocessor`` gives them.

        Returns:
            ``(B, classes, H, W)``.
        """
        logits = self.model(x, mode="tensor")
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=self.align_corners)

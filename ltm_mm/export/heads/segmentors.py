"""mmseg's segmentors: images in, logits of the same size out (ours)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .common import WholeModel


class Logits(WholeModel):
    """mmseg's encoder and decoder, without what happens before and after them.

    Args:
        model: an ``EncoderDecoder`` of mmseg; put in eval mode.

    Raises:
        ValueError: if the model is none.
    """

    outputs = ("logits",)

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(getattr(model, "decode_head", None), nn.Module):
            raise ValueError(f"{type(model).__name__} has no decode_head")
        super().__init__(model)
        # mmseg pads images while testing only where the preprocessor has a test_cfg.
        self.divisor = (model.data_preprocessor.test_cfg or {}).get("size_divisor", 1)
        self.align_corners = bool(getattr(model, "align_corners", False))
        head = model.decode_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        self.about = dict(
            align_corners=self.align_corners,
            channels_out=model.out_channels,
            threshold=getattr(head, "threshold", None) or 0.0,
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

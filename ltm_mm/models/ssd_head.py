"""mmdet's SSDHead, able to predict.

From 3.1 on mmdet asks every dense head for its ``loss_cls`` when it predicts, and SSDHead
has none (open-mmlab/mmdetection#11063).
"""

from torch import nn


def SSDHead(**options: object) -> nn.Module:  # a type's name in configs
    """mmdet's ``SSDHead``, with the attribute that mmdet looks for when it predicts.

    Args:
        **options: as for mmdet's.

    Raises:
        ImportError: if mmdet is missing.
    """
    try:
        from mmdet.models.dense_heads import SSDHead as Head
    except ImportError as error:
        raise ImportError("ltm_mm.SSDHead needs mmdet: pip install 'ltm_mm[mm]'") from error
    head = Head(**options)
    if not hasattr(head, "loss_cls"):
        head.loss_cls = None
    return head

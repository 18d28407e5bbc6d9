"""OpenMMLab weights (mmdet, mmseg, mmpretrain) and the prefixes that wrap any weights."""

import re
from collections.abc import Mapping

from torch import Tensor

from . import official, transformers

# In the order they nest, outermost first. `encoder.` is SimMIM's; the second `model.` is that
# of timm's feature extractors.
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "image_encoder.",
    "img_backbone.",
    "backbone.",
    "timm_model.",
    "model.",
    "encoder.",
)


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what wraps a backbone's keys, and leave out what lies beside the backbone.

    Args:
        state_dict: e.g. a detector's, ``module.backbone.stages.0. ...``.

    Returns:
        A new dict with the backbone's keys alone; shares its tensors.
    """
    prefix = transformers.find_prefix(state_dict)
    if prefix is not None:
        return transformers.strip_prefix(state_dict, prefix)
    out = dict(state_dict)
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in out):
            out = {k[len(prefix) :]: v for k, v in out.items() if k.startswith(prefix)}
    return out


def unwrapped_name(name: str) -> str:
    """A parameter's name without what DDP and ``torch.compile`` put before it."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet/mmseg/mmpretrain Swin state dict, without classifier and fixed tables.

    Files that OpenMMLab converted from the authors' have this form too; their left-over
    final ``norm`` is dropped for the reason given in :mod:`.official`.

    Args:
        state_dict: keys without any prefix (``stages.0.blocks.0.attn.w_msa. ...``).

    Returns:
        A new dict that shares its tensors.
    """
    return {k: v for k, v in state_dict.items() if not official.UNUSED.search(k)}

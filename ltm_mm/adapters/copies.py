"""Copies of a model that share its weights: with other plans, for images of other sizes."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any

from torch import nn

from ..families import of_type
from ..models.backbones.base import LTMBackbone
from ..presets import Keep, Plan
from .apply import convert_stages, resolve_model_plan

Size = tuple[int, int]


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a model's modules with the very same parameters and buffers."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def in_our_blocks(model: nn.Module, keep: Keep) -> nn.Module:
    """A copy whose stages all run on our code, merged or not, with the same weights.

    :func:`ltm_mm.apply` leaves stages without merging as they are. Here they are swapped,
    too, so that times differ by merging alone.

    Args:
        model: plain, as :func:`ltm_mm.apply` supports it.
        keep: the merging plan; None: nothing is merged.

    Raises:
        ValueError: as :func:`ltm_mm.apply`.
    """
    model = shared_copy(model)
    convert_stages(model, keep, everywhere=True)
    return model


def whole_plan(model: nn.Module) -> tuple[str, Plan]:
    """A plain model's family, and the plan that keeps all tokens, as ``keep`` takes it.

    Raises:
        ValueError: as :func:`ltm_mm.apply`.
    """
    ltm_backbone = next((m for m in model.modules() if isinstance(m, LTMBackbone)), None)
    if ltm_backbone is not None:
        record = of_type(type(ltm_backbone).__name__)
        if record is None:
            raise ValueError(f"{type(ltm_backbone).__name__} has no record in ltm_mm.families")
        return record.name, ltm_backbone.plan
    (family, _, plan), *others = resolve_model_plan(model, None)
    if any((other.family, other.plan) != (family, plan) for other in others):
        raise ValueError(f"{type(model).__name__} has backbones of several kinds: measure each")
    return family.name, ((),) * family.skipped + plan


def by_size(model: nn.Module) -> Callable[[Size], nn.Module]:
    """The model for images of any size: a timm model that is built for one size is refitted."""
    inner = getattr(model, "backbone", model)
    embed = getattr(inner, "patch_embed", None)
    fixed = getattr(embed, "strict_img_size", False) and not getattr(
        inner, "dynamic_img_size", False
    )
    if not fixed:
        return lambda size: model

    @lru_cache
    def fitted(size: Size) -> nn.Module:
        copy = shared_copy(model)
        backbone: Any = getattr(copy, "backbone", copy)
        if getattr(backbone, "pos_embed", None) is not None:
            backbone.set_input_size(img_size=size)
        else:
            backbone.patch_embed.strict_img_size = False
        return copy

    return fitted

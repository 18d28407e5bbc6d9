"""Token merging on a model in memory: put it on, take it off.

Nothing in the model is replaced: blocks of stages that merge swap their class for one that
runs on merged tokens, and reads the block's own layers in every pass.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.learned import Learned
from ..families import FAMILIES, load, titles
from ..layers.swap_class import SwappedClass, restore_class
from ..merging.masks import check_mask
from ..models.backbones.base import LTMBackbone
from ..presets import Keep, Plan
from .families import FamilyAdapter, swin_stages

ADAPTERS: tuple[type[FamilyAdapter], ...] = tuple(
    load(family.adapter) for family in FAMILIES.values() if family.adapter
)


def apply(
    model: nn.Module,
    keep: Keep = "balanced",
    mask: str = "match",
    window_size: int | None = None,
    detail: Learned | str | os.PathLike | None = None,
) -> nn.Module:
    """Merge tokens in a model that is already built, in place.

    Its modules and parameters stay the same objects under the same names (an optimiser that holds
    them goes on), and so do its hooks; outputs keep their shapes. Only masks that learn add
    parameters, under names with ``merge``. Gradient checkpointing, another input size, layers that
    are wrapped or replaced, ``load_state_dict`` and ``to`` work as without merging.

    Args:
        model: a detector, segmentor, classifier or backbone, or one with several backbones, each
            of which gets the plan; see ``docs/any-swin.md`` for the libraries.
        keep: the merging plan, as ``LTMSwin``, ``LTMEfficientViT``, ``LTMMobileViT`` and
            ``LTMViT`` take it.
        mask: 'match'; for a Swin also 'soft', as ``LTMSwin`` takes it.
        window_size: tokens per merging window side of an EfficientViT (8 by default); a
            Swin's windows are its own, a ViT has none.
        detail: what :func:`ltm_mm.learn` or ``tools/learn.py`` learned, or its file. Weights that
            learned with it replace the model's until :func:`remove`.

    Returns:
        The model itself.

    Raises:
        ValueError: if it is no model, has no such blocks, merges already, or the plan
            or the detail does not fit; the model is as before.
        OSError: if the detail's file cannot be read.
    """
    learned = Learned.load(detail) if isinstance(detail, str | os.PathLike) else detail
    convert_stages(model, keep, mask, window_size)
    try:
        if learned is not None:
            attach(model, learned)
    except BaseException:
        remove(model)
        raise
    return model


def attach(model: Any, learned: Learned) -> None:
    """Give a merging model what was learned for it.

    Raises:
        ValueError: if it does not fit.
    """
    if learned.weights:
        parameters = dict(model.named_parameters())
        for name, value in learned.weights.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise ValueError(f"the learned weights are of another model: {name} does not fit")
        model._ltm_weights_before = {n: parameters[n].detach().clone() for n in learned.weights}
        _copy_in(model, learned.weights)
    if learned.details:
        stages = swin_stages(model)
        learned.attach(stages)
        learned.check_weights(stages)


def _copy_in(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def convert_stages(
    model: nn.Module,
    keep: Keep,
    mask: str = "match",
    window_size: int | None = None,
    everywhere: bool = False,
) -> None:
    """As :func:`apply`.

    Args:
        model, keep, mask, window_size: as there.
        everywhere: whether stages that merge nothing run on our code, too, so that times
            differ by merging alone.
    """
    backbones = resolve_model_plan(model, keep, mask, window_size)
    for backbone in backbones:
        backbone.family.check(backbone.stages)
    try:
        for family, stages, plan in backbones:
            whole = family.whole(stages, window_size)
            for stage, counts in zip(stages, plan, strict=True):
                if counts and (everywhere or min(counts) < whole):
                    family.wrap_stage(stage, counts, mask, window_size)
    except BaseException:
        remove(model)
        raise


class BackbonePlan(NamedTuple):
    """A backbone in a model, and the tokens that each of its blocks keeps."""

    family: type[FamilyAdapter]
    stages: list[Any]
    plan: Plan


def resolve_model_plan(
    model: nn.Module, keep: Keep, mask: str = "match", window_size: int | None = None
) -> list[BackbonePlan]:
    """What a plan is for each of a plain model's backbones, one at least.

    Raises:
        ValueError: as :func:`apply`.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a built model (an nn.Module), got {model!r}")
    if is_applied(model) or any(isinstance(m, LTMBackbone) for m in model.modules()):
        raise ValueError(
            "the model merges tokens already: call ltm_mm.remove(model) first, or change its "
            "backbone's `keep`"
        )
    backbones = [(family, stages) for family in ADAPTERS for stages in family.backbones(model)]
    if not backbones:
        supported = " or ".join(family.supported for family in ADAPTERS)
        raise ValueError(f"{type(model).__name__} has no stages to merge in: use {supported}")
    check_mask(mask)
    for name in (family.name for family, _ in backbones):
        if mask != "match" and not FAMILIES[name].takes_mask:
            others = titles(f for f in FAMILIES.values() if f.takes_mask)
            raise ValueError(f"mask={mask!r} is for {others}; this is a {name}")
        if window_size is not None and not FAMILIES[name].takes_window:
            others = titles(f for f in FAMILIES.values() if f.takes_window)
            raise ValueError(f"window_size is for {others}; this is a {name}")
    return [BackbonePlan(f, stages, f.plan(keep, stages, window_size)) for f, stages in backbones]


def remove(model: nn.Module) -> nn.Module:
    """Take the merging of :func:`apply` off again, in place.

    Args:
        model: a model that ``apply`` was called on; any other is left as it is.

    Returns:
        The model itself: every module has its own class again. Parameters, hooks and what was
        changed meanwhile stay.
    """
    for module in list(_applied(model)):
        restore_class(module)
    before = vars(model).pop("_ltm_weights_before", None)
    if before:
        _copy_in(model, before)
    return model


def is_applied(model: nn.Module) -> bool:
    """Whether :func:`apply` was called on a model."""
    return any(True for _ in _applied(model))


def _applied(module: nn.Module) -> Iterator[nn.Module]:
    """Modules whose classes are swapped; those of our own backbones are not meant."""
    if isinstance(module, LTMBackbone):
        return
    if isinstance(module, SwappedClass):
        yield module
    for child in module.children():
        yield from _applied(child)

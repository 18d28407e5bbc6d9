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
from ..checkpoints.mm import unwrapped_name
from ..families import FAMILIES, load, titles
from ..layers.swap_class import SwappedClass, restore_class
from ..merging import merges
from ..models.backbones.base import LTMBackbone
from ..presets import Keep, Plan
from .families import FamilyAdapter, swin_stages

ADAPTERS: tuple[type[FamilyAdapter], ...] = tuple(
    load(family.adapter) for family in FAMILIES.values() if family.adapter
)

BEFORE = "_ltm_weights_before"  # a module's own parameters, where learned ones are in their place


def apply(
    model: nn.Module,
    keep: Keep = "balanced",
    window_size: int | None = None,
    detail: Learned | str | os.PathLike | None = None,
) -> nn.Module:
    """Merge tokens in a model that is already built, in place.

    Its modules and parameters stay the same objects under the same names (an optimiser that holds
    them goes on), and so do its hooks; outputs keep their shapes. Only details and the masks of an
    EfficientViT add parameters, under names with ``merge``: an optimiser made before does not have
    these. Gradient checkpointing, another input size, layers that are wrapped or replaced,
    ``load_state_dict`` and ``to`` work as without merging.

    Args:
        model: a detector, segmentor, classifier or backbone, or one with several backbones, each
            of which gets the plan; see ``docs/any-swin.md`` for the libraries.
        keep: the merging plan, as ``LTMSwin``, ``LTMEfficientViT``, ``LTMMobileViT`` and
            ``LTMViT`` take it.
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
    if not isinstance(learned, Learned | None):
        raise ValueError(
            f"detail must be what ltm_mm.learn returned, or its file, got a {type(detail).__name__}"
        )
    convert_stages(model, keep, window_size)
    try:
        if learned is not None:
            if not merges(model):
                raise ValueError(f"keep={keep!r} merges nothing, so there is nothing to correct")
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
        _put_weights(model, learned.weights)
    if learned.details:
        stages = swin_stages(model)
        learned.attach(stages)
        learned.check_weights(stages)


@torch.no_grad()
def _put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy learned weights in. Each module keeps its own old ones, whoever wraps it meanwhile."""
    owners = {
        unwrapped_name(f"{path}.{name}" if path else name): (module, name)
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    places = []
    for key, value in weights.items():
        module, name = owners.get(unwrapped_name(key), (None, ""))
        if module is None or getattr(module, name).shape != value.shape:
            raise ValueError(f"the learned weights are of another model: {key} does not fit")
        places.append((module, name, value))
    for module, name, value in places:
        parameter = getattr(module, name)
        vars(module).setdefault(BEFORE, {})[name] = parameter.detach().clone()
        parameter.copy_(value)


@torch.no_grad()
def _put_back(model: nn.Module) -> None:
    """Undo :func:`_put_weights`."""
    for module in model.modules():
        for name, value in vars(module).pop(BEFORE, {}).items():
            getattr(module, name).copy_(value)


def convert_stages(
    model: nn.Module,
    keep: Keep,
    window_size: int | None = None,
    everywhere: bool = False,
) -> None:
    """As :func:`apply`.

    Args:
        model, keep, window_size: as there.
        everywhere: whether stages that merge nothing run on our code, too, so that times
            differ by merging alone.
    """
    backbones = resolve_model_plan(model, keep, window_size)
    for backbone in backbones:
        backbone.family.check(backbone.stages)
    try:
        for family, stages, plan in backbones:
            whole = family.whole(stages, window_size)
            for stage, counts in zip(stages, plan, strict=True):
                if counts and (everywhere or min(counts) < whole):
                    family.wrap_stage(stage, counts, window_size)
    except BaseException:
        remove(model)
        raise


class BackbonePlan(NamedTuple):
    """A backbone in a model, and the tokens that each of its blocks keeps."""

    family: type[FamilyAdapter]
    stages: list[Any]
    plan: Plan


def resolve_model_plan(
    model: nn.Module, keep: Keep, window_size: int | None = None
) -> list[BackbonePlan]:
    """What a plan is for each of a plain model's backbones, one at least.

    Raises:
        ValueError: as :func:`apply`.
    """
    check_model(model)
    if is_applied(model) or any(isinstance(m, LTMBackbone) for m in model.modules()):
        raise ValueError(
            "the model merges tokens already: call ltm_mm.remove(model) first, or change its "
            "backbone's `keep`"
        )
    backbones = [(family, stages) for family in ADAPTERS for stages in family.backbones(model)]
    if not backbones:
        supported = " or ".join(family.supported for family in ADAPTERS)
        raise ValueError(f"{type(model).__name__} has no stages to merge in: use {supported}")
    for name in (family.name for family, _ in backbones):
        if window_size is not None and not FAMILIES[name].takes_window:
            others = titles(f for f in FAMILIES.values() if f.takes_window)
            raise ValueError(f"window_size is for {others}; this is a {name}")
    return [BackbonePlan(f, stages, f.plan(keep, stages, window_size)) for f, stages in backbones]


def check_model(model: object) -> None:
    """Raise a ValueError for what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a built model (an nn.Module), got {model!r}")


def remove(model: nn.Module) -> nn.Module:
    """Take the merging of :func:`apply` off again, in place.

    Args:
        model: a model that ``apply`` was called on; any other is left as it is.

    Returns:
        The model itself: every module has its own class again. Parameters, hooks and what was
        changed meanwhile stay.

    Raises:
        ValueError: if it is no model.
    """
    check_model(model)
    for module in list(_applied(model)):
        restore_class(module)
    _put_back(model)
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

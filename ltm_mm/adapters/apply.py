"""Add token merging to a model in memory, and remove it again.

No module is replaced: in stages that merge, the class of each block is swapped for one that runs
the block's own layers on merged tokens.
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

    Modules, parameters and hooks stay the same objects under the same names (an existing optimiser
    keeps working), and outputs keep their shapes. Only details and the masks of an EfficientViT add
    parameters, with ``merge`` in their names; an existing optimiser does not contain these.
    Gradient checkpointing, other input sizes, wrapped or replaced layers, ``load_state_dict`` and
    ``to`` work as without merging.

    Args:
        model: a detector, segmentor, classifier or backbone, or one with several backbones, each
            of which gets the plan; see ``docs/any-swin.md`` for the libraries.
        keep: the merging plan, in the form of ``LTMSwin``, ``LTMEfficientViT``, ``LTMMobileViT``
            and ``LTMViT``.
        window_size: tokens per merging window side of an EfficientViT (8 by default); a Swin uses
            its own windows, a ViT has none.
        detail: the result of :func:`ltm_mm.learn`, or a file with it, as ``tools/learn.py`` writes.
            Weights that were learned with it replace the model's until :func:`remove`.

    Returns:
        The model itself.

    Raises:
        ValueError: if it is not a model, has no supported blocks, merges already, or the plan or
            the detail does not fit; the model is left unchanged.
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
    """Load what was learned for a merging model into it.

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
    """Copy learned weights in. Each module stores its old ones, even if it is wrapped later."""
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
        everywhere: also run stages that merge nothing on our code, so that differences in time are
            due to merging alone.
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
    """Resolve a plan for each backbone of a plain model, at least one.

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
    """Raise a ValueError unless it is a model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a built model (an nn.Module), got {model!r}")


def remove(model: nn.Module) -> nn.Module:
    """Undo :func:`apply`, in place.

    Args:
        model: a model that ``apply`` was called on; any other is left unchanged.

    Returns:
        The model itself, with every module's original class. Parameters, hooks and any changes made
        in between are kept.

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
    """Modules whose classes are swapped, except those of our own backbones."""
    if isinstance(module, LTMBackbone):
        return
    if isinstance(module, SwappedClass):
        yield module
    for child in module.children():
        yield from _applied(child)

"""From a config to a model: with a merging plan and a checkpoint, parameters shared."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapters import is_applied, remove
from ..checkpoints import load_into, read_state_dict
from ..checks.weights import check_weights, is_pretrained, naming_weights
from ..errors import UserError, naming
from ..families import FAMILIES, NAMED, load, of_type
from ..merging import merges
from ..presets import Keep
from .config import backbone_config, load_config
from .convert import use_ltm

if TYPE_CHECKING:
    from mmengine.config import Config

AS_CONFIGURED: Any = object()  # instead of a plan: what the config has


def named_config(source: str) -> "Config":
    """The config of a file, or one with nothing but a named backbone of ours.

    Args:
        source: a file, ``package::path``, or a backbone's name, one of ``families.NAMED``.

    Raises:
        UserError: if it is neither.
    """
    name = re.fullmatch(rf"ltm-({'|'.join(FAMILIES)})-(\w+)", source)
    if name:
        family = FAMILIES[name[1]]
        archs = family.sizes or family.archs
        if name[2] not in archs:
            raise UserError(f"unknown arch {name[2]!r} of {source}: choose from {', '.join(archs)}")
        return backbone_config(type=family.type, arch=name[2])
    if re.fullmatch(r"[\w-]+", source):
        raise UserError(f"{source} is neither a config file nor one of {NAMED}")
    cfg = load_config(source)
    if not (cfg.get("model") or {}).get("backbone"):
        raise UserError(f"{source} has no model.backbone to measure")
    return cfg


def model_builder(
    cfg: "Config",
    checkpoint: str | None = None,
    *,
    backbone: bool = False,
    trust: bool = False,
    strict: bool | None = None,
    device: str = "cpu",
    seed: int = 0,
    start_as_training: bool = False,
) -> Callable[..., nn.Module]:
    """What builds a config's model with any plan and one set of weights, in eval mode.

    The models share their parameters, so that many take little memory.

    Args:
        cfg: with a whole model, or with a backbone alone; not changed.
        checkpoint: a file or address; None: weights drawn at random, always the same.
        backbone: build the backbone alone.
        trust: see :func:`ltm_mm.checkpoints.read_state_dict`.
        strict: nothing but merging may start fresh; None: so for a whole model.
        device: where the model goes.
        seed: of what is drawn at random.
        start_as_training: without a checkpoint, initialise as a training would, with the
            config's pretrained weights; a checkpoint may be a backbone's alone.

    Returns:
        A function of the plan; without an argument it builds what the config has.

    Raises:
        UserError: there is no such device, or the checkpoint cannot be read. The function: the
            model cannot merge, a plan merges nothing, or the checkpoint is of another model.
    """
    check_device(device)
    whole = "type" in cfg.model and not backbone
    with naming(checkpoint):
        weights = read_state_dict(checkpoint, trust) if checkpoint else None
    if strict is None:
        of_backbone = weights is not None and not any(_IN_BACKBONE.search(key) for key in weights)
        strict = whole and not (start_as_training and of_backbone)
    shared: dict[str, nn.Parameter] = {}

    def build(keep: Keep = AS_CONFIGURED) -> nn.Module:
        changed = deepcopy(cfg)
        if keep is not AS_CONFIGURED:
            use_ltm(changed, keep)
        if weights is not None or not start_as_training:
            drop_pretrained(changed)
        # Would pad the batches of a training step to another size.
        (changed.model.get("data_preprocessor") or {}).pop("batch_augments", None)
        if start_as_training:
            check_weights(changed)
        torch.manual_seed(seed)
        with scope_of(changed), quiet():
            model: Any = construct(changed.model if whole else changed.model.backbone)
            if start_as_training:
                with naming_weights(changed):
                    model.init_weights()
            if weights is not None:
                with naming(checkpoint):
                    load_into(model, weights, strict=strict)
        if keep not in (None, AS_CONFIGURED) and not merges(model):
            raise UserError(f"--ltm {keep} merges nothing in this model")
        share_parameters(model.to(device), shared)
        model.eval()  # which returns nothing from mmdet's Swin
        return model

    return build


_IN_BACKBONE = re.compile(r"(^|\.)(img_)?backbone\.")


def construct(options: Mapping) -> nn.Module:
    """A model of its config; without mmengine one of our backbones."""
    try:
        from mmengine.registry import MODELS
    except ModuleNotFoundError:
        family = of_type(options["type"])
        assert family is not None
        return load(family.code)(**{k: v for k, v in options.items() if k != "type"})
    return MODELS.build(options)


def check_device(device: str) -> None:
    """Raise a UserError if PyTorch has no such device here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used here ({reason}): give cpu") from error


def channels_of(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its backbone's first convolution."""
    backbone = getattr(model, "backbone", model)
    convs = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def share_parameters(model: nn.Module, shared: dict[str, nn.Parameter]) -> None:
    """Give a model the parameters that others of its kind have already, by name and shape."""
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                first = shared.setdefault(f"{name}.{key}", parameter)
                module._parameters[key] = first if first.shape == parameter.shape else parameter


def scope_of(cfg: "Config") -> AbstractContextManager:
    """mmengine's default scope of a config, for what is built within."""
    scope = cfg.get("default_scope")
    if scope is None:
        return nullcontext()
    from mmengine.registry import DefaultScope

    return DefaultScope.overwrite_default_scope(scope)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep mmengine from logging each load of the same weights, and how each was drawn."""
    try:
        from mmengine.logging import MMLogger
    except ModuleNotFoundError:
        yield
        return
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def drop_pretrained(cfg: "Config") -> None:
    """Keep a model from loading weights that a whole checkpoint replaces anyway."""
    _drop(cfg.model)


def _drop(node: object) -> None:
    if isinstance(node, (list, tuple)):
        for child in node:
            _drop(child)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "pretrained" and value:
            node[key] = None if isinstance(value, str) else False
        elif key == "init_cfg" and is_pretrained(value):
            node[key] = None
        elif key == "init_cfg" and isinstance(value, (list, tuple)):
            node[key] = [one for one in value if not is_pretrained(one)]
        else:
            _drop(value)


def plain_model(merged: nn.Module, cfg: "Config") -> nn.Module:
    """The model without merging, with the weights that the merging one has now.

    Args:
        merged: the model; not a wrapper for distributed training.
        cfg: what it was built from.

    Raises:
        UserError: if the config's backbone cannot be converted.
    """
    if is_applied(merged):
        return plain_twin(merged)
    cfg = deepcopy(cfg)
    use_ltm(cfg, None)
    drop_pretrained(cfg)
    with scope_of(cfg):
        plain = construct(cfg.model)
    share_weights(merged, plain)
    return plain


def share_weights(merged: nn.Module, plain: nn.Module) -> None:
    """Load a merging model's weights into its plain twin.

    Raises:
        ValueError: if the two are not twins.
    """
    missing, unused = plain.load_state_dict(merged.state_dict(), strict=False)
    odd = [*missing, *(key for key in unused if ".merge." not in key)]
    if odd:
        raise ValueError(f"the plain model is no twin of the merging one: {odd[0]} differs")


def plain_twin(model: nn.Module) -> nn.Module:
    """A plain copy of a model that :func:`ltm_mm.apply` was used on.

    Raises:
        ValueError: if it was not: build the config again with ``keep=None`` then, and
            :func:`share_weights`.
    """
    if not is_applied(model):
        raise ValueError(f"ltm_mm.apply was not used on this {type(model).__name__}")
    return remove(deepcopy(model))

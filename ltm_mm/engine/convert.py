"""Convert the backbone of any MM config to its learnable-token-merging counterpart."""

import ast
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..checkpoints.learned import Learned
from ..errors import UserError, naming
from ..families import FAMILIES, of_type
from ..presets import NAMES, Keep

if TYPE_CHECKING:
    from mmengine.config import Config

# mmpretrain's backbones have other keywords and parameter names than mmdet's and mmseg's.
OTHER_SCOPES = ("mmpretrain", "mmcls")
BACKBONE_KEYS = ("backbone", "img_backbone")


def parse_keep(text: str) -> Keep:
    """What to keep, from the command line.

    Args:
        text: a preset's name, ``none``, a number of tokens ('25') or a share of them ('0.5'), or
            a plan as Python literal; see :func:`ltm_mm.presets.resolve_plan`.

    Raises:
        UserError: if it is none of these.
    """
    if text == "none":
        return None
    if text in NAMES:
        return text
    try:
        keep = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        keep = None
    if isinstance(keep, bool) or not isinstance(keep, int | float | tuple | list):
        raise UserError(
            f"--ltm {text}: give none, {', '.join(NAMES)}, a number of tokens such as 25, a share "
            "of them such as 0.5, or a plan with one entry per stage such as "
            "'(None, None, (None, 25, 25, 25, 25, 25), None)'"
        )
    return keep


def use_ltm(cfg: "Config", keep: Keep) -> list[str]:
    """Convert every backbone of a config's model that can be converted, in place.

    Args:
        cfg: of mmdet, mmseg, or of what builds on them. A backbone of a family that
            :mod:`ltm_mm.families` knows, of mmdet, mmseg or timm (``TIMMBackbone``), becomes the
            family's own, with all else kept; an LTM backbone gets the new ``keep``.
        keep: the merging plan, see :func:`ltm_mm.presets.resolve_plan`.

    Returns:
        One line per backbone that says what was changed.

    Raises:
        UserError: if the model has no backbone that can be converted.
    """
    scope = cfg.get("default_scope") or ""
    lines, others = [], []
    for path, backbone in _backbones(cfg.get("model") or {}, "model"):
        scope_here = backbone.get("_scope_") or scope
        old = _name(backbone["type"])
        new = _convert(backbone, scope_here)
        if new is None:
            others.append(f"{path} is {old}{_variant(backbone)}")
            continue
        backbone["type"], backbone["keep"] = new, keep
        lines.append(f"{path}: {old} -> {new} (keep={keep!r})")
    if not lines:
        raise UserError(
            f"--ltm has nothing to convert: {'; '.join(others) or 'the model has no backbone'}. "
            f"It supports {', '.join(_supported())}"
        )
    return lines


def set_detail(cfg: "Config", detail: str | None, *ltm: str | None) -> None:
    """Have the Swin of a config take a file of learned details, in place.

    Args:
        cfg: of a model, or of a backbone alone.
        detail: a file of ``tools/learn.py``; None: nothing is changed.
        *ltm: plans that the backbone will be converted to; none or None: it stays as it is.

    Raises:
        UserError: if the file cannot be read, holds weights, too, or there is no merging Swin to
            take it.
    """
    if detail is None:
        return
    with naming(detail):
        learned = Learned.load(detail)
    if learned.weights is not None:
        raise UserError(
            f"--detail {detail}: the file holds weights, too, which its detail was learned with: "
            "give it instead of the checkpoint, without --detail"
        )
    takes_detail, plans = False, {plan for plan in ltm if plan is not None}
    for _, backbone in _backbones(cfg.get("model") or {}, "model"):
        short = _name(backbone["type"]).rpartition(".")[2]
        if any(
            f.takes_detail and (short == f.backbone or (plans and short in f.replaces))
            for f in FAMILIES.values()
        ):
            backbone["detail"] = os.path.abspath(os.path.expanduser(detail))
            merging = {str(keep).lower() for keep in plans or [backbone.get("keep", "balanced")]}
            takes_detail |= bool(merging - {"none"})
    if not takes_detail:
        raise UserError(
            f"--detail {detail}: details are for a merging Swin; give --ltm with a Swin's config, "
            "and a plan other than none"
        )


def _backbones(node: object, path: str) -> Iterator[tuple[str, Any]]:
    """Every backbone's dict in a model's config, with its dotted key."""
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _backbones(child, f"{path}.{index}")
    elif isinstance(node, Mapping):
        for key, child in node.items():
            if key in BACKBONE_KEYS and isinstance(child, Mapping) and "type" in child:
                yield f"{path}.{key}", child
            else:
                yield from _backbones(child, f"{path}.{key}")


def _convert(backbone: dict, scope: str) -> str | None:
    """The counterpart's type, after fitting the arguments to it; None if there is none."""
    name = _name(backbone["type"])
    package, _, short = name.rpartition(".")
    package = package.partition(".")[0] or scope
    if family := of_type(short):
        return family.type
    if short == "TIMMBackbone":
        return _from_timm(backbone)
    replaced = (f.type for f in FAMILIES.values() if short in f.replaces)
    return None if package in OTHER_SCOPES else next(replaced, None)


def _supported() -> Iterator[str]:
    """What can be converted, for a message."""
    for family in FAMILIES.values():
        yield from (f"{name} of mmdet and mmseg" for name in family.replaces)
        if family.timm and family.timm_backbone:
            archs = "{" + ",".join(family.archs) + "}"
            prefix = family.timm_prefix
            yield f"TIMMBackbone with {f'{prefix}*' if prefix else family.timm.format(archs)}"


def _name(given: Any) -> str:
    """A type's name, which a lazily imported config holds as a class."""
    return given if isinstance(given, str) else f"{given.__module__.split('.')[0]}.{given.__name__}"


def _variant(backbone: Mapping) -> str:
    """The part of a backbone's config that tells variants of a type apart, for a message."""
    known = backbone.get("model_name") or backbone.get("depth") or backbone.get("arch")
    return f" ({known})" if known else ""


# Follow from our backbones' taking images of any size; the last is of the classifier.
TIMM_UNUSED: tuple[str, ...] = ("features_only", "dynamic_img_size", "dynamic_img_pad")
TIMM_UNUSED += ("strict_img_size", "drop_rate")


def _from_timm(backbone: dict) -> str | None:
    """Turn ``TIMMBackbone``'s arguments into our backbone's, weights included.

    Returns:
        The type; None for networks without a counterpart, whose arguments stay.
    """
    name = backbone.get("model_name", "")
    counterparts = (
        (family, arch)
        for family in FAMILIES.values()
        if family.timm_backbone and (arch := family.arch_of(name.partition(".")[0]))
    )
    family, backbone_arch = next(counterparts, (None, None))
    if family is None:
        return None
    del backbone["model_name"]
    backbone["arch"] = backbone_arch
    if family.timm_maps is not None:
        backbone.setdefault("out_indices", family.timm_maps)
    for key in TIMM_UNUSED:
        backbone.pop(key, None)
    for ours, theirs in family.timm_keywords.items():
        if theirs in backbone:
            backbone[ours] = backbone.pop(theirs)
    path, pretrained = backbone.pop("checkpoint_path", ""), backbone.pop("pretrained", True)
    if not path and pretrained:
        path = _timm_weights(name)
    if path:
        backbone["init_cfg"] = dict(type="Pretrained", checkpoint=path)
    return family.type


def _timm_weights(name: str) -> str:
    """Address of the weights that timm loads for a model's name."""
    import timm

    try:
        card = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"timm knows no weights {name!r}: {error}") from error
    if card is None or not card.hf_hub_id:
        raise UserError(f"timm has no pretrained weights for {name}: set pretrained=False")
    return f"https://huggingface.co/{card.hf_hub_id}/resolve/main/model.safetensors"

"""Convert the backbone of any MM config to its learnable-token-merging counterpart."""

import ast
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..checkpoints.learned import Learned
from ..errors import UserError, naming
from ..families import EFFICIENTVIT, MOBILEVIT, SWIN, VIT, of_type
from ..presets import NAMES, Keep

if TYPE_CHECKING:
    from mmengine.config import Config

# mmpretrain's Swin has other keywords and parameter names than mmdet's and mmseg's.
OTHER_SWIN_SCOPES = ("mmpretrain", "mmcls")
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
        cfg: of mmdet, mmseg, or of what builds on them. A Swin Transformer (mmdet's or
            mmseg's) becomes LTMSwin, timm's EfficientViT, MobileViT or ViT (through
            ``TIMMBackbone``) LTMEfficientViT, LTMMobileViT or LTMViT, with all else kept;
            an LTM backbone gets the new ``keep``.
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
            "It supports SwinTransformer of mmdet and mmseg, and TIMMBackbone with MIT Han Lab's "
            "efficientvit_b0 ... b3, l1 ... l3, with mobilevit_xxs, xs, s, and with vit_*"
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
        ours = of_type(_name(backbone["type"]).rpartition(".")[2]) is SWIN
        short = _name(backbone["type"]).rpartition(".")[2]
        if ours or (plans and short == "SwinTransformer"):
            backbone["detail"] = os.path.abspath(os.path.expanduser(detail))
            merging = {str(keep).lower() for keep in plans or [backbone.get("keep", "balanced")]}
            takes_detail |= bool(merging - {"none"})
    if not takes_detail:
        raise UserError(
            f"--detail {detail}: details are for a merging Swin; give --ltm with a Swin's config, "
            "and a plan other than none"
        )


def _backbones(node: object, path: str) -> Iterator[tuple[str, dict]]:
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
    if short == "SwinTransformer" and package not in OTHER_SWIN_SCOPES:
        return SWIN.type
    if short == "TIMMBackbone" and (counterpart := _timm_counterpart(backbone)):
        type_name, arch = counterpart
        _fit_timm(backbone, arch)
        return type_name
    return None


def _name(given: object) -> str:
    """A type's name, which a lazily imported config holds as a class."""
    return given if isinstance(given, str) else f"{given.__module__.split('.')[0]}.{given.__name__}"


def _variant(backbone: Mapping) -> str:
    """The part of a backbone's config that tells variants of a type apart, for a message."""
    known = backbone.get("model_name") or backbone.get("depth") or backbone.get("arch")
    return f" ({known})" if known else ""


def _timm_counterpart(backbone: Mapping) -> tuple[str, str] | None:
    """Type and arch for timm's ``efficientvit_b1.r224_in1k``, ...; None for other networks."""
    name = backbone.get("model_name", "").partition(".")[0]
    for family in (EFFICIENTVIT, MOBILEVIT):
        for arch in family.archs:
            if name == family.in_timm(arch):
                return family.type, arch
    return (VIT.type, name) if name.startswith("vit_") else None


# timm's keywords -> ours.
TIMM_KEYWORDS = {"embed_dim": "embed_dims", "depth": "num_layers"}
# Follow from our backbones' taking images of any size.
TIMM_UNUSED = ("features_only", "dynamic_img_size", "dynamic_img_pad", "strict_img_size")
TIMM_UNUSED += ("drop_rate",)  # of the classifier, which a backbone lacks


def _fit_timm(backbone: dict, arch: str) -> None:
    """Turn ``TIMMBackbone``'s arguments into our backbone's, weights included."""
    backbone["arch"] = arch
    name = backbone.pop("model_name")
    if name.startswith("mobilevit"):
        backbone.setdefault("out_indices", (0, 1, 2, 3, 4))  # timm's default
    elif name.startswith("vit"):
        backbone.setdefault("out_indices", 3)
    for key in TIMM_UNUSED:
        backbone.pop(key, None)
    for theirs, ours in TIMM_KEYWORDS.items():
        if theirs in backbone:
            backbone[ours] = backbone.pop(theirs)
    path, pretrained = backbone.pop("checkpoint_path", ""), backbone.pop("pretrained", True)
    if not path and pretrained:
        path = _timm_weights(name)
    if path:
        backbone["init_cfg"] = dict(type="Pretrained", checkpoint=path)


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

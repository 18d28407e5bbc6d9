"""What a benchmark compares: models of a config, of a plan, of mmdet or of timm."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...engine.build import construct, model_builder, named_config
from ...engine.convert import parse_keep, set_detail, use_ltm
from ...errors import UserError
from ...families import SWIN, of_type
from ...models.backbones.base import copy_weights

if TYPE_CHECKING:
    from mmengine.config import Config

OURS = ("keep", "mask", "detail", "arch", "type")  # arguments that mmdet's Swin lacks


def build_models(
    config: str,
    plans: Sequence[str] = (),
    against: Sequence[str] = (),
    size: tuple[int, int] = (800, 1216),
    whole: bool = False,
    detail: str | None = None,
) -> dict[str, nn.Module]:
    """Models to compare, with the same weights as far as names and shapes agree.

    Args:
        config: a config (file or ``package::path``) whose backbone can merge, or the name of
            a backbone of ours, one of ``families.NAMED``.
        plans: what the config's backbone keeps, as on the command line ('none', 'balanced',
            ...); none: as the config has it.
        against: baselines: 'plain' (the config without merging), 'mmdet-swin', 'timm'
            (their backbone in the config's place), or another config, left as it is.
        size: height and width of the images, which timm's Swin is built for.
        whole: the whole detector or segmentor, not its backbone alone.
        detail: a file of ``tools/learn.py``, which merging blocks take.

    Returns:
        Name -> model, the baselines first.

    Raises:
        UserError: if something is unknown, or does not fit the config.
    """
    cfg = named_config(config)
    set_detail(cfg, detail, *plans)
    if whole and "type" not in cfg.model:
        raise UserError(f"{config} is a backbone; the whole model needs a detector's config")
    build = model_builder(cfg, backbone=not whole)
    baselines = {name: _baseline(name, cfg, size, whole) for name in against}
    if plans:
        models = {f"keep={plan}": build(parse_keep(plan)) for plan in plans}
    else:
        models = {_short(config): build()}
    weights = list(models.values())[-1]
    for model in baselines.values():
        copy_weights(weights, model)
    return baselines | models


def _baseline(name: str, cfg: "Config", size: tuple[int, int], whole: bool) -> nn.Module:
    if name not in ("plain", "mmdet-swin", "timm"):
        return model_builder(named_config(name), backbone=not whole)()
    plain = deepcopy(cfg)
    use_ltm(plain, None)
    backbone = plain.model.backbone
    if name == "mmdet-swin":
        plain.model.backbone = _mmdet_swin(backbone)
    model = model_builder(plain, backbone=not whole)()
    if name == "timm":
        maps = TimmMaps(backbone, size)
        if not whole:
            return maps
        model.backbone = maps
    return model


def _mmdet_swin(backbone: Mapping) -> dict[str, object]:
    """Arguments of mmdet's ``SwinTransformer`` for those of ``LTMSwin``."""
    if backbone["type"] != SWIN.type:
        raise UserError(f"--against mmdet-swin needs a Swin, the config has {backbone['type']}")
    options = {k: v for k, v in backbone.items() if k not in OURS}
    sizes = SWIN.sizes[backbone["arch"]] if backbone.get("arch") else {}
    return dict(type="mmdet.SwinTransformer", **{**options, **sizes})


class TimmMaps(nn.Module):
    """timm's counterpart of a backbone of ours: NCHW maps of the same stages.

    A ViT's last norm and pyramid, which are not timm's, are ours.

    Args:
        backbone: arguments of one of our backbones.
        size: height and width of the images in pixels.
    """

    def __init__(self, backbone: Mapping, size: tuple[int, int]) -> None:
        super().__init__()
        import timm

        ours: Any = construct(backbone)
        self.norm = getattr(ours, "norm", nn.Identity())
        self.pyramid, self.strides = getattr(ours, "pyramid", None), ours.strides
        name, options = _timm_arguments(backbone, size)
        torch.manual_seed(0)
        self.model = timm.create_model(
            name, features_only=True, **options, out_indices=ours.out_indices
        )
        self.channel_last = self.model.output_fmt == "NHWC"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` to one map per stage."""
        maps = self.model(x)
        if self.channel_last:
            return tuple(m.permute(0, 3, 1, 2).contiguous() for m in maps)
        if not isinstance(self.norm, nn.Identity):
            maps = [self.norm(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for m in maps]
        if self.pyramid is None:
            return tuple(maps)
        sizes = [[-(-side // stride) for side in x.shape[2:]] for stride in self.strides]
        levels = zip(self.pyramid(maps[0]), sizes, strict=True)
        return tuple(level[:, :, :height, :width] for level, (height, width) in levels)


def _timm_arguments(backbone: Mapping, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """timm's name and keywords for the network of one of our backbones."""
    family = of_type(backbone["type"])
    if family is None or family.timm is None:
        raise UserError(f"--against timm: timm has no counterpart of {backbone['type']}")
    arch = backbone.get("arch")
    named = family.default if arch is None or family.sizes else arch
    given = {**backbone, **(family.sizes[arch] if arch and family.sizes else {})}
    options: dict[str, Any] = {"img_size": size} if family.timm_sized else {}
    options |= family.timm_options
    options |= {
        theirs: given[ours]
        for ours, theirs in family.timm_keywords.items()
        if given.get(ours) is not None
    }
    return family.in_timm(named), options


def _short(config: str) -> str:
    """A config's name for a table."""
    return config.rpartition("/")[2].removesuffix(".py")

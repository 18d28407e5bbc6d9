"""What a benchmark compares: models of a config, of a plan, of mmdet or of timm (ours)."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ...engine.config import load_config
from ...engine.convert import parse_keep, use_ltm
from ...engine.run import drop_pretrained
from ...errors import UserError
from ...families import FAMILIES, MOBILEVIT, SWIN, VIT, of_type
from ...models.backbones import swin

NAMED = ", ".join(f"ltm-{f.name}-{{{','.join(f.archs)}}}" for f in FAMILIES.values())
OURS = ("keep", "mask", "arch", "type")  # arguments that mmdet's Swin lacks


def build_models(
    config: str,
    plans: Sequence[str] = (),
    against: Sequence[str] = (),
    size: tuple[int, int] = (800, 1216),
    whole: bool = False,
) -> dict[str, nn.Module]:
    """Models to compare, with the same weights as far as names and shapes agree.

    Args:
        config: a config (file or ``package::path``) whose backbone can merge, or the name of
            a backbone of ours, one of ``NAMED``.
        plans: what the config's backbone keeps, as on the command line ('none', 'balanced',
            ...); none: as the config has it.
        against: baselines: 'plain' (the config without merging), 'mmdet-swin', 'timm'
            (their backbone in the config's place), or another config, left as it is.
        size: height and width of the images, which timm's Swin is built for.
        whole: the whole detector or segmentor, not its backbone alone.

    Returns:
        Name -> model, the baselines first.

    Raises:
        UserError: if something is unknown, or does not fit the config.
    """
    cfg = named_config(config)
    if whole and "type" not in cfg.model:
        raise UserError(f"{config} is a backbone; the whole model needs a detector's config")
    models = {}
    for name in against:
        models[name] = _baseline(name, cfg, size, whole)
    for plan in plans or [None]:
        mine = deepcopy(cfg)
        if plan is not None:
            use_ltm(mine, parse_keep(plan))
        models[f"keep={plan}" if plan is not None else _short(config)] = _build(mine, whole)
    states = [m.state_dict() for m in models.values()]
    for model in models.values():
        _share(model, states[-1])
    return models


def named_config(source: str) -> Config:
    """The config of a file, or one with nothing but a named backbone of ours.

    Args:
        source: see :func:`build_models`.

    Raises:
        UserError: if it is neither.
    """
    found = re.fullmatch(rf"ltm-({'|'.join(FAMILIES)})-(\w+)", source)
    if found:
        family = FAMILIES[found[1]]
        archs = tuple(swin.ARCHS) if family is SWIN else family.archs  # Swin's have short names
        if found[2] not in archs:
            raise UserError(
                f"unknown arch {found[2]!r} of {source}: choose from {', '.join(archs)}"
            )
        return Config(dict(model=dict(backbone=dict(type=family.type, arch=found[2]))))
    if re.fullmatch(r"[\w-]+", source):
        raise UserError(f"{source} is neither a config file nor one of {NAMED}")
    cfg = load_config(source)
    if not (cfg.get("model") or {}).get("backbone"):
        raise UserError(f"{source} has no model.backbone to measure")
    return cfg


def _build(cfg: Config, whole: bool) -> nn.Module:
    """A config's model or backbone, without a look for pretrained weights."""
    drop_pretrained(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    torch.manual_seed(0)
    if whole:
        # Would pad the batch that is measured to another size.
        (cfg.model.get("data_preprocessor") or {}).pop("batch_augments", None)
    return MODELS.build(cfg.model if whole else cfg.model.backbone)


def _baseline(name: str, cfg: Config, size: tuple[int, int], whole: bool) -> nn.Module:
    if name not in ("plain", "mmdet-swin", "timm"):
        return _build(named_config(name), whole)
    plain = deepcopy(cfg)
    use_ltm(plain, None)
    backbone = plain.model.backbone
    if name == "mmdet-swin":
        plain.model.backbone = _mmdet_swin(backbone)
    model = _build(plain, whole)
    if name == "timm":
        maps = TimmMaps(backbone, size)
        if not whole:
            return maps
        model.backbone = maps
    return model


def _mmdet_swin(backbone: ConfigDict) -> ConfigDict:
    """Arguments of mmdet's ``SwinTransformer`` for those of ``LTMSwin``."""
    if backbone.type != SWIN.type:
        raise UserError(f"--against mmdet-swin needs a Swin, the config has {backbone.type}")
    options = {k: v for k, v in backbone.items() if k not in OURS}
    arch = swin.ARCHS[backbone.arch] if backbone.get("arch") else {}
    return ConfigDict(type="mmdet.SwinTransformer", **{**options, **arch})


# Our backbones' keywords -> timm's, where a network of other sizes can be built.
_TIMM_SWIN = dict.fromkeys(
    ("depths", "num_heads", "patch_size", "window_size", "mlp_ratio", "drop_path_rate")
)
_TIMM_SWIN |= dict(embed_dims="embed_dim", in_channels="in_chans")
_TIMM_VIT = dict.fromkeys(("img_size", "patch_size", "num_heads", "drop_path_rate"))
_TIMM_VIT |= dict(embed_dims="embed_dim", num_layers="depth", in_channels="in_chans")


class TimmMaps(nn.Module):
    """timm's counterpart of a backbone of ours: NCHW maps of the same stages.

    A ViT's last norm and pyramid, which are not timm's, are ours.

    Args:
        backbone: arguments of one of our backbones.
        size: height and width of the images in pixels.
    """

    def __init__(self, backbone: ConfigDict, size: tuple[int, int]) -> None:
        super().__init__()
        import timm

        self.channel_last = backbone.type == SWIN.type
        self.norm, self.pyramid = nn.Identity(), None
        options: dict[str, object] = {}
        if backbone.type == VIT.type:
            ours = MODELS.build(backbone)
            self.norm, self.pyramid, self.strides = ours.norm, ours.pyramid, ours.strides
            options["out_indices"] = ours.out_indices
        name, own = _timm_model(backbone, size)
        torch.manual_seed(0)
        self.model = timm.create_model(name, features_only=True, **{**own, **options})

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


def _timm_model(backbone: ConfigDict, size: tuple[int, int]) -> tuple[str, dict[str, object]]:
    """timm's name and keywords for the network of one of our backbones."""
    family = of_type(backbone.type)
    assert family is not None
    arch = backbone.get("arch")
    if family is SWIN:
        # Windows of one size at every image size, as ours are.
        options = dict(img_size=size, window_size=7, always_partition=True)
        own = {**backbone, **(swin.ARCHS[arch] if arch else {})}
        options |= _renamed(own, _TIMM_SWIN) | dict(out_indices=(0, 1, 2, 3))
        return family.in_timm(None), options | _renamed(backbone, {"out_indices": None})
    if family is VIT:
        options = dict(dynamic_img_size=True, dynamic_img_pad=True)
        return family.in_timm(arch), options | _renamed(backbone, _TIMM_VIT)
    maps = (1, 2, 3, 4) if family is MOBILEVIT else (0, 1, 2, 3)
    options = dict(out_indices=backbone.get("out_indices") or maps)
    return family.in_timm(arch), options | dict(in_chans=backbone.get("in_channels", 3))


def _renamed(options: Mapping[str, object], names: Mapping[str, str | None]) -> dict[str, object]:
    """Those options that have a name there, under that name; None: under their own."""
    return {names[k] or k: v for k, v in options.items() if k in names and v is not None}


def _share(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Take over the weights whose name and shape are the same."""
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)


def _short(config: str) -> str:
    """A config's name for a table."""
    return config.rpartition("/")[2].removesuffix(".py")

"""What a benchmark compares: models of a config, of a plan, of mmdet or of timm (ours)."""

import re
from collections.abc import Sequence
from copy import deepcopy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..engine.config import load_config
from ..engine.errors import UserError
from ..engine.run import drop_pretrained
from ..engine.swap import check_unmerge, parse_slots, use_ltm
from ..models.backbones.swin import ARCHS

LTM_SWIN, LTM_EFFICIENTVIT = "ltm_mm.LTMSwin", "ltm_mm.LTMEfficientViT"
OURS = ("slots", "steps", "unmerge", "arch", "type")  # arguments that mmdet's Swin lacks
NAMED = "ltm-swin-{t,s,b,l}, ltm-efficientvit-{b0..b3,l1..l3}"


def build_models(
    config: str,
    plans: Sequence[str] = (),
    against: Sequence[str] = (),
    size: tuple[int, int] = (800, 1216),
    whole: bool = False,
    unmerge: str | None = None,
) -> dict[str, nn.Module]:
    """Models to compare, with the same weights as far as names and shapes agree.

    Args:
        config: a config (file or ``package::path``) whose backbone merging can serve,
            or the name of a backbone of ours, such as ``ltm-swin-t``.
        plans: slots of the config's backbone, as on the command line ('none',
            'balanced', ...); none: as the config has them.
        against: rivals: 'plain' (the config without merging), 'mmdet-swin', 'timm'
            (their backbone in the config's place), or another config, left as it is.
        size: height and width of the images, which timm's Swin is built for.
        whole: the whole detector or segmentor, not its backbone alone.
        unmerge: 'residual' or 'none', of the merging models; None: as the config has it.

    Returns:
        Name -> model, the rivals first.

    Raises:
        UserError: if something is unknown, or does not fit the config.
    """
    cfg = _config(config)
    if whole and "type" not in cfg.model:
        raise UserError(f"{config} is a backbone; the whole model needs a detector's config")
    models = {}
    for name in against:
        models[name] = _rival(name, cfg, size, whole)
    for plan in plans or [None]:
        mine = deepcopy(cfg)
        if plan is not None:
            use_ltm(mine, parse_slots(plan))
        if unmerge is not None:
            mine.model.backbone.unmerge = unmerge
            check_unmerge(mine)
        models[f"slots={plan}" if plan is not None else _short(config)] = _build(mine, whole)
    states = [m.state_dict() for m in models.values()]
    for model in models.values():
        _share(model, states[-1])
    return models


def _config(source: str) -> Config:
    """The config of a file, or one with nothing but a backbone of ours."""
    found = re.fullmatch(r"ltm-(swin|efficientvit)-(\w+)", source)
    if not found:
        if re.fullmatch(r"[\w-]+", source):
            raise UserError(f"{source} is neither a config file nor one of {NAMED}")
        cfg = load_config(source)
        if not (cfg.get("model") or {}).get("backbone"):
            raise UserError(f"{source} has no model.backbone to measure")
        return cfg
    family, arch = found.groups()
    backbone = dict(type=LTM_SWIN if family == "swin" else LTM_EFFICIENTVIT, arch=arch)
    return Config(dict(model=dict(backbone=backbone)))


def _build(cfg: Config, whole: bool) -> nn.Module:
    """A config's model or backbone, without a look for pretrained weights."""
    drop_pretrained(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    torch.manual_seed(0)
    if whole:
        # Would pad the batch that is measured to another size.
        (cfg.model.get("data_preprocessor") or {}).pop("batch_augments", None)
    return MODELS.build(cfg.model if whole else cfg.model.backbone)


def _rival(name: str, cfg: Config, size: tuple[int, int], whole: bool) -> nn.Module:
    if name not in ("plain", "mmdet-swin", "timm"):
        return _build(_config(name), whole)
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
    if backbone.type != LTM_SWIN:
        raise UserError(f"--against mmdet-swin needs a Swin, the config has {backbone.type}")
    options = {k: v for k, v in backbone.items() if k not in OURS}
    arch = ARCHS[backbone.arch] if backbone.get("arch") else {}
    return ConfigDict(type="mmdet.SwinTransformer", **{**options, **arch})


class TimmMaps(nn.Module):
    """timm's counterpart of a backbone of ours: NCHW maps of the same stages.

    Args:
        backbone: arguments of ``LTMSwin`` or ``LTMEfficientViT``.
        size: height and width of the images in pixels.
    """

    def __init__(self, backbone: ConfigDict, size: tuple[int, int]) -> None:
        super().__init__()
        import timm

        out = tuple(backbone.get("out_indices", (0, 1, 2, 3)))
        options = dict(features_only=True, out_indices=out)
        self.channel_last = backbone.type == LTM_SWIN
        if self.channel_last:
            name = f"swin_{_swin_arch(backbone)}_patch4_window7_224"
            # Windows of 7 at every size, as the others have them.
            options |= dict(img_size=size, window_size=7, always_partition=True)
        else:
            name = f"efficientvit_{backbone.get('arch', 'b1')}"
        torch.manual_seed(0)
        self.model = timm.create_model(name, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` to one map per stage."""
        maps = self.model(x)
        if self.channel_last:
            return tuple(m.permute(0, 3, 1, 2).contiguous() for m in maps)
        return tuple(maps)


def _swin_arch(backbone: ConfigDict) -> str:
    """'tiny' ... 'large' for the arguments of ``LTMSwin``."""
    default = dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7)
    options = {k: backbone.get(k, v) for k, v in default.items()}
    window = options.pop("window_size")
    arch = backbone.get("arch")
    for name in ("tiny", "small", "base", "large"):
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        if window == 7 and (ARCHS[name] == (ARCHS[arch] if arch else given)):
            return name
    raise UserError("--against timm: timm has Swin-T, -S, -B and -L with windows of 7 only")


def _share(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Take over the weights whose name and shape are the same."""
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)


def _short(config: str) -> str:
    """A config's name for a table."""
    return config.rpartition("/")[2].removesuffix(".py")

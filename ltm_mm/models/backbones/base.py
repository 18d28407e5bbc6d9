"""Base of all backbones here: the contract of an OpenMMLab backbone."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...merging import MaskModule
from ...presets import Plan
from .options import check_texts, is_ints

BLOCK = r"stages\.\d+\.(blocks\.)?\d+|blocks\.\d+"  # paths of all backbones' blocks
STEM: tuple[str, ...] = ("patch_embed.", "absolute_pos_embed", "pos_embed", "cls_token")
STEM += ("reg_token", "norm_pre.", "stem.")


class LTMBackbone(nn.Module):
    """Base of the backbones: freezing, initial weights, and the declared outputs.

    It follows mmengine's ``BaseModule`` protocol but does not need mmengine.

    A subclass sets ``plan`` (tokens that every block keeps), ``out_channels`` and ``strides``
    (one number per output map), calls :meth:`freeze` at the end of ``__init__``, and returns a
    tuple of NCHW maps.

    Args:
        out_indices: stages whose maps are returned, in their order (-1: the last one); an int:
            that many of the last ones, as in timm.
        num_stages: number of stages.
        frozen_stages: the stem and the stages before this one get no gradient and stay in eval
            mode; -1: none.
        init_cfg: see :func:`checked_init_cfg`.

    Raises:
        ValueError: if ``out_indices`` or ``frozen_stages`` is out of range, or ``init_cfg`` names
            no weights.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    plan: Plan
    norm_eval = False  # keep batch normalisation in eval mode while training

    def __init__(
        self,
        out_indices: Sequence[int] | int,
        num_stages: int,
        frozen_stages: int,
        init_cfg: Mapping | str | os.PathLike | None,
    ) -> None:
        super().__init__()
        named: Any = range(-out_indices, 0) if type(out_indices) is int else out_indices
        if not is_ints(named) or not named or any(not -num_stages <= i < num_stages for i in named):
            raise ValueError(
                f"out_indices must name stages from 0 to {num_stages - 1}, got {out_indices!r}"
            )
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= num_stages:
            raise ValueError(f"frozen_stages must lie in -1..{num_stages}, got {frozen_stages!r}")
        self.init_cfg = checked_init_cfg(init_cfg)
        self.is_init = False  # mmengine's models initialise a part once
        self.out_indices = tuple(sorted({i % num_stages for i in named}))
        self.num_stages = num_stages
        self.frozen_stages = frozen_stages

    def frozen_modules(self) -> list[nn.Module]:
        """Modules (and parameters' owners) that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop the gradients of the frozen part and put it in eval mode."""
        for module in self.frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's layer-wise learning rate decay.

        Args:
            param_name: the parameter's name in the whole model.
            prefix: prefix of this backbone's parameters, e.g. ``backbone.``.

        Returns:
            0 for the stem, 1 for the first block, ...; and the number of depths. Layers after the
            blocks, and the model's other parts, have the last depth.
        """
        blocks = [name for name, _ in self.named_modules() if re.fullmatch(BLOCK, name)]
        last = len(blocks) + 1
        if not param_name.startswith(prefix):
            return last, last + 1
        name = param_name[len(prefix) :]
        if match := re.match(BLOCK, name):
            return blocks.index(match[0]) + 1, last + 1
        if match := re.match(r"stages\.(\d+)\.", name):  # patch merging, behind a stage
            return sum(int(b.split(".")[1]) <= int(match[1]) for b in blocks), last + 1
        return (0 if name.startswith(STEM) else last), last + 1

    def train(self, mode: bool = True) -> "LTMBackbone":
        """Switch mode, keep frozen parts in eval mode, and return self."""
        super().train(mode)
        self.freeze()
        for module in self.modules():
            if self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def init_weights(self) -> None:
        """Draw fresh weights, or load ``init_cfg``'s checkpoint over them. Needs mmengine."""
        from mmengine.logging import print_log

        from ...checkpoints import load_backbone

        self.reset_parameters()
        if self.init_cfg is None:
            print_log(
                f"{type(self).__name__}: no checkpoint given, weights start from scratch",
                logger="current",
            )
        else:
            load_backbone(
                self,
                self.init_cfg["checkpoint"],
                prefix=self.init_cfg.get("prefix"),
                trust=self.init_cfg.get("trust", False),
            )
        self.is_init = True

    def reset_parameters(self) -> None:
        """Draw fresh weights; mask modules keep their own initial values."""
        raise NotImplementedError

    def modules_outside_masks(self) -> list[nn.Module]:
        """All modules but the mask modules and their parts."""
        masks = (m for m in self.modules() if isinstance(m, MaskModule))
        parts = {part for mask in masks for part in mask.modules()}
        return [m for m in self.modules() if m not in parts]


def checked_init_cfg(init_cfg: object) -> dict | None:
    """The initial weights of a backbone, in a normalised form.

    Args:
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, with ``prefix`` and ``trust``
            of :func:`ltm_mm.checkpoints.load_backbone` if needed; the path or URL alone; None: from
            scratch.

    Raises:
        ValueError: if it is none of these.
    """
    if init_cfg is None:
        return None
    if isinstance(init_cfg, str | os.PathLike):
        init_cfg = dict(type="Pretrained", checkpoint=init_cfg)
    given = dict(init_cfg) if isinstance(init_cfg, Mapping) else {}
    # A lazily imported config holds mmengine's class, PretrainedInit.
    type_name = str(getattr(given.get("type"), "__name__", given.get("type")))
    checkpoint = given.get("checkpoint", "")
    known = {"type", "checkpoint", "prefix", "trust", "map_location"}  # always to the CPU
    named = isinstance(checkpoint, str | os.PathLike) and os.fspath(checkpoint)
    if type_name.removesuffix("Init") != "Pretrained" or not named or given.keys() - known:
        raise ValueError(
            "init_cfg must be None, a file or an address, or dict(type='Pretrained', "
            f"checkpoint=FILE) with prefix and trust where needed, got {init_cfg!r}"
        )
    return {**given, "type": "Pretrained", "checkpoint": os.fspath(checkpoint)}


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers that both modules have; the others stay unchanged."""
    target_state = target.state_dict()
    source_state = source.state_dict().items()
    target.load_state_dict({k: v for k, v in source_state if k in target_state}, strict=False)


def norm_option(name: str | None) -> dict[str, type[nn.Module]]:
    """timm's keyword for a normalisation layer of mmengine's registry; empty for None.

    Raises:
        ValueError: if there is no such layer.
    """
    check_texts(norm_layer=name)
    if name is None:
        return {}
    import mmcv.cnn  # noqa: F401  registers 'SyncBN', 'LN2d', ...
    from mmengine.registry import MODELS

    layer = MODELS.get(name)
    if layer is None:
        raise ValueError(f"norm_layer must name a layer of mmengine's registry, got {name!r}")
    return dict(norm_layer=layer)

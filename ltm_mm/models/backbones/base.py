"""What all backbones here share: the contract of an OpenMMLab backbone (ours)."""

from collections.abc import Sequence
from copy import deepcopy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...merging import Match, Soft
from ...presets import Plan


class LTMBackbone(nn.Module):
    """Base of the backbones: freezing, initial weights, and the declared outputs.

    It keeps mmengine's ``BaseModule`` protocol without needing mmengine.

    A subclass sets ``plan`` (tokens that every block keeps), ``out_channels`` and ``strides``
    (one number per output map), calls :meth:`freeze` at the end of ``__init__``, and returns a
    tuple of NCHW maps.

    Args:
        out_indices: stages whose maps are returned, rising.
        num_stages: how many stages there are.
        frozen_stages: the stem and the stages before this one get no gradient and
            stay in eval mode; -1 freezes nothing.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, with ``prefix`` and
            ``trust`` of :func:`ltm_mm.checkpoints.load_backbone` where needed; None: from
            scratch.

    Raises:
        ValueError: if ``out_indices`` or ``frozen_stages`` is out of range.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    plan: Plan
    norm_eval = False  # keep batch normalisation in eval mode while training

    def __init__(
        self,
        out_indices: Sequence[int],
        num_stages: int,
        frozen_stages: int,
        init_cfg: dict | None,
    ) -> None:
        super().__init__()
        if not out_indices or any(not 0 <= i < num_stages for i in out_indices):
            raise ValueError(
                f"out_indices must name stages from 0 to {num_stages - 1}, got {tuple(out_indices)}"
            )
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f"frozen_stages must lie in -1..{num_stages}, got {frozen_stages!r}")
        if init_cfg and init_cfg.get("type") != "Pretrained":
            raise ValueError(
                "init_cfg must be None or dict(type='Pretrained', checkpoint=...), "
                f"got {init_cfg!r}"
            )
        self.init_cfg = deepcopy(init_cfg)
        self.is_init = False  # mmengine's models initialise a part once
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages

    def frozen_modules(self) -> list[nn.Module]:
        """Modules (and parameters' owners) that ``frozen_stages`` freezes."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop the gradients of the frozen part and put it in eval mode."""
        for module in self.frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "LTMBackbone":
        """Switch mode, keep what is frozen in eval mode, and return self."""
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
        """Draw fresh weights; mask modules keep their own start."""
        raise NotImplementedError

    def modules_outside_masks(self) -> list[nn.Module]:
        """All modules but the mask modules and their parts."""
        return [m for m in self.modules() if not isinstance(m, Match | Soft)]


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers of one name and shape; others stay as they are."""
    own = target.state_dict()
    found = source.state_dict().items()
    target.load_state_dict({k: v for k, v in found if k in own}, strict=False)

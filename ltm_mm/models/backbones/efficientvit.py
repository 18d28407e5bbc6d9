"""LTM-EfficientViT: EfficientViT of MIT Han Lab with learnable token merging.

Papers: EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction
(Cai et al., ICCV 2023, arXiv 2205.14756); Efficient Visual Transformer by Learnable
Token Merging (Wang & Yang, TPAMI 2025, arXiv 2407.15219). The blocks are timm's
(Apache-2.0, ``timm.models.efficientvit_mit``) under timm's parameter names. Windowed
merging on the grid and residual unmerging are ours: the paper's authors published no
merging code to compare with.

Not to be confused with the EfficientViT of MSRA (Liu et al., CVPR 2023; timm's
``efficientvit_m0`` ... ``m5``), another network of the same name.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...families import EFFICIENTVIT
from ...kernels import fold_convs
from ...layers.swap_class import SwappedClass, refuse_tracing, swap_class
from ...merging import MergeScope, MergingBlock, has_listeners, notify_merge
from ...merging.grid import GridMerge, GridMerger, unmerge_all
from ...presets import Keep, Plan, resolve_plan
from .base import LTMBackbone, norm_option
from .options import check_arch, check_flags, check_ints

ARCHS = EFFICIENTVIT.archs


class LTMEfficientViT(LTMBackbone):
    """EfficientViT whose attention stages merge tokens and unmerge them at their end.

    An attention stage is a convolution that halves the resolution and then blocks of
    a context module (linear attention) and a local module (inverted bottleneck with a
    depth-wise convolution). In a merged block the context module runs on all tokens,
    its output is merged into a smaller grid (its convolutions need one), and the local module
    and the stage's later blocks run on that; at the stage's end the update is added back to all
    tokens. With ``keep=None`` it equals timm's ``features_only`` model.

    Args:
        arch: 'b0' to 'b3' (the last two of four stages have attention) or 'l1' to 'l3'
            (the last one has).
        keep: tokens kept per window of N = ``window_size ** 2``: None (all of them: no
            merging), a preset ('light', 'balanced', 'fast', 'paper'), a number for all blocks, or
            one entry per stage: None (always for a stage without attention), a number, or one
            per attention block, never rising, e.g. ``(None, None, (64, 36, 36), (64, 36, 36,
            25))`` for 'b1'. A number is a square number up to N, or a share of N (a float 0..1).
        window_size: tokens per window side, >= 1, of the grids at stride 16 and 32.
        in_channels: channels of the image.
        out_indices: stages whose maps are returned; later stages are not built.
        norm_layer: name of another normalisation layer of mmengine's registry, e.g. 'SyncBN'.
        frozen_stages: -1 nothing, 0 the stem, k the first k stages too.
        norm_eval: keep batch normalisation in eval mode while training (running
            statistics as loaded; for small batches).
        with_cp: recompute activations in the backward pass to save memory.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, that path alone, or None.

    Raises:
        ValueError: if an argument does not fit; the message states what is allowed.
    """

    def __init__(
        self,
        arch: str = "b1",
        keep: Keep = None,
        window_size: int = 8,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_layer: str | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | str | None = None,
    ) -> None:
        check_arch(arch, ARCHS)
        check_ints(in_channels=in_channels)
        check_flags(norm_eval=norm_eval, with_cp=with_cp)
        reference: Any = _timm_model(arch, dict(in_chans=in_channels) | norm_option(norm_layer))
        super().__init__(out_indices, len(reference.stages), frozen_stages, init_cfg)
        self.norm_eval = norm_eval
        self.plan = resolve_stage_plans(keep, reference.stages, window_size)
        self.stem = fold_convs(reference.stem)
        self.stages = nn.ModuleList(
            merge_stage(fold_convs(stage), plan, window_size, with_cp)
            for stage, plan in zip(
                reference.stages[: max(self.out_indices) + 1], self.plan, strict=False
            )
        )
        info = reference.feature_info
        self.out_channels = tuple(info[i]["num_chs"] for i in self.out_indices)
        self.strides = tuple(info[i]["reduction"] for i in self.out_indices)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature pyramid of a batch of images.

        Args:
            x: images ``(B, in_channels, H, W)``, any H, W >= 1 pixel.

        Returns:
            One map ``(B, out_channels[k], ceil(H / strides[k]), ceil(W / strides[k]))``
            per entry of ``out_indices``.
        """
        x = self.stem(_fast_layout(x))
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)

    def frozen_modules(self) -> list[nn.Module]:
        """The stem from 0 on, then one stage each."""
        return [] if self.frozen_stages < 0 else [self.stem, *self.stages[: self.frozen_stages]]

    def reset_parameters(self) -> None:
        """Fresh weights as the reference draws them: each layer's own default."""
        module: Any
        for module in self.modules_outside_masks():
            if hasattr(module, "reset_parameters") and module is not self:
                module.reset_parameters()


class EfficientVitLTMStage(SwappedClass, MergeScope):
    """A stage of timm's EfficientViT that merges inside and unmerges at its end.

    See :func:`merge_stage`.
    """

    EXTRAS = ("with_cp",)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, ceil(H/2), ceil(W/2))``."""
        refuse_tracing(x)
        merge: GridMerge | None = None
        for block in self.blocks:
            x, merge = self._run(block, _fast_layout(x), merge)
        return unmerge_all(x.permute(0, 2, 3, 1), merge).permute(0, 3, 1, 2)

    def _run(
        self, block: nn.Module, x: Tensor, merge: GridMerge | None
    ) -> tuple[Tensor, GridMerge | None]:
        """A block's output, and the last merge so far."""

        def run(x: Tensor, merge: GridMerge | None) -> tuple[Tensor, GridMerge | None]:
            if not isinstance(block, AttentionBlock):
                return block(x), merge
            chain = GridChain(merge)
            return block(x, chain), chain.last

        if self.with_cp and x.requires_grad:
            return checkpoint(
                run, x, merge, use_reentrant=False, context_fn=lambda: _contexts(block)
            )
        return run(x, merge)


@dataclass
class GridChain:
    """What a block passes on besides its map.

    Attributes:
        last: the merge that made the tokens; None: they are the map's.
    """

    last: GridMerge | None


class AttentionBlock(SwappedClass, MergingBlock):
    """timm's ``EfficientVitBlock``: attention, a merge where planned, and the local module."""

    EXTRAS = ("merge",)
    merge: GridMerger | None

    def forward(self, x: Tensor, chain: GridChain | None = None) -> Tensor:
        """Run the block.

        Args:
            x: tokens or merged tokens ``(B, C, H, W)``.
            chain: state of the stage's pass; receives the block's merge.

        Returns:
            The output grid ``(B, C, h, w)``.
        """
        x = _fast_layout(self.context_module(x))
        if self.merge is not None and chain is not None:
            chain.last = self.merge(x.permute(0, 2, 3, 1), chain.last)
            if has_listeners():
                notify_merge(self.merge.mask, chain.last)
            x = chain.last.merged_grid.permute(0, 3, 1, 2)
        return self.local_module(x)


def merge_stage(stage: Any, plan: Sequence[int], window: int, with_cp: bool = False) -> nn.Module:
    """Make a stage merge tokens, in place; it gets parameters with ``.merge.`` in their names.

    Args:
        stage: timm's ``EfficientVitStage`` or ``EfficientVitLargeStage``; its class is swapped,
            and those of its attention blocks.
        plan: tokens per window that each attention block's local module runs on, one square
            number per attention block; ``()`` for a stage without attention.
        window: tokens per window side.
        with_cp: recompute each block's activations in the backward pass.

    Returns:
        The stage itself.
    """
    before, sides = window, iter(round(count**0.5) for count in plan)
    for block in stage.blocks:
        if hasattr(block, "context_module"):
            side = next(sides)
            norm = block.context_module.main.proj.norm.weight
            merge = GridMerger(before, side).to(norm) if side < before else None
            swap_class(block, AttentionBlock, merge=merge)
            before = side
    swap_class(stage, EfficientVitLTMStage, with_cp=with_cp)
    return stage


def resolve_stage_plans(keep: Keep, stages: Sequence[Any], window: int) -> Plan:
    """Tokens per window that every attention block of every stage keeps.

    Args:
        keep: as :class:`LTMEfficientViT`.
        stages: timm's stages.
        window: tokens per window side.

    Returns:
        One tuple per stage, one square number per attention block; ``()`` without attention.

    Raises:
        ValueError: if the plan does not fit; the message states what is allowed.
    """
    check_ints(window_size=window)
    blocks = [[b for b in stage.blocks if hasattr(b, "context_module")] for stage in stages]
    first = next(in_stage[0] for in_stage in blocks if in_stage)
    width = first.context_module.main.proj.norm.weight.numel()
    depths = [len(in_stage) for in_stage in blocks]
    return resolve_plan(keep, depths, window**2, ("efficientvit", width), True, square=True)


def _timm_model(arch: str, options: dict) -> nn.Module:
    """timm's model, whose stem and stages are used."""
    from timm.models import efficientvit_mit

    build = getattr(efficientvit_mit, f"efficientvit_{arch}")
    return build(**options, head_widths=(1, 1), num_classes=0)  # no head to draw


def _fast_layout(x: Tensor) -> Tensor:
    """The memory format in which convolutions are fastest on the CPU; unchanged elsewhere."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first run and of the one in the backward pass."""
    return nullcontext(), _frozen_statistics(module)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation without an update of its running statistics.

    A block recomputed in the backward pass would count its batch a second time.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count

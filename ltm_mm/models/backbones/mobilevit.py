"""LTM-MobileViT: MobileViT with learnable token merging.

Papers: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer
(Mehta & Rastegari, ICLR 2022, arXiv 2110.02178); Efficient Visual Transformer by
Learnable Token Merging (Wang & Yang, TPAMI 2025, arXiv 2407.15219). The blocks are
timm's (``timm.models.mobilevit``) under timm's parameter names. How tokens are matched and
residual unmerging are ours: the paper's authors published no merging code to compare with.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...families import MOBILEVIT
from ...layers.swap_class import SwappedClass, refuse_tracing, swap_class
from ...presets import Keep, Plan, resolve_plan
from .base import LTMBackbone, copy_weights, norm_option
from .global_blocks import merge_blocks
from .options import check_arch, check_flags, check_ints, check_rates

ARCHS = MOBILEVIT.archs
TOKENS = 64  # tokens that a plan's numbers refer to


class LTMMobileViT(LTMBackbone):
    """MobileViT whose transformers merge tokens and unmerge them before patches are folded.

    A MobileViT block (one in each of the last three of five stages) cuts its map into
    patches of 2 x 2 pixels; pixels at the same position in their patches attend to each other, so
    there are four grids of tokens per image, one per position. Each is merged separately, like a
    ViT's tokens, and the transformer's update is unmerged before the grids are folded into a map
    again, because the convolutions after it need the full size. With ``keep=None`` it equals timm's
    ``features_only`` model.

    Args:
        arch: 'xxs', 'xs' or 's'.
        keep: tokens that are kept: None (all: no merging), a preset ('light', 'balanced',
            'fast', 'paper'), a number for all blocks, or one entry per stage: None (always for
            the first two), a number, or one per transformer block, never rising. A number is a
            share (a float 0..1), or an int per 64 tokens of a grid.
        in_channels: channels of the image.
        out_indices: stages whose maps are returned (strides 2, 4, 8, 16, 32); later
            stages are not built. The last stage's map goes through MobileViT's final convolution,
            as in timm.
        drop_path_rate: of the last transformer block's residual branches, 0..1.
        norm_layer: name of another normalisation layer of mmengine's registry, e.g. 'SyncBN'.
        frozen_stages: -1 nothing, 0 the stem, k the first k stages too.
        norm_eval: keep batch normalisation in eval mode while training (running
            statistics as loaded; for small batches).
        with_cp: recompute the transformers' activations in the backward pass to save
            memory.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, that path alone, or None.

    Raises:
        ValueError: if an argument does not fit; the message states what is allowed.
    """

    def __init__(
        self,
        arch: str = "s",
        keep: Keep = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        drop_path_rate: float = 0.0,
        norm_layer: str | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | str | None = None,
    ) -> None:
        check_arch(arch, ARCHS)
        check_ints(in_channels=in_channels)
        check_rates(drop_path_rate=drop_path_rate)
        check_flags(norm_eval=norm_eval, with_cp=with_cp)
        options = dict(in_chans=in_channels, drop_path_rate=drop_path_rate)
        self_build = (arch, options | norm_option(norm_layer))
        reference: Any = _timm_model(*self_build)
        count = len(reference.stages)
        super().__init__(out_indices, count, frozen_stages, init_cfg)
        self._build = self_build
        self.norm_eval = norm_eval
        self.plan = resolve_stage_plans(keep, reference.stages)
        self.stem = reference.stem
        self.stages = nn.ModuleList(
            nn.Sequential(*(_with_merging(block, plan, with_cp) for block in stage))
            for stage, plan in zip(
                reference.stages[: max(self.out_indices) + 1], self.plan, strict=False
            )
        )
        whole = len(self.stages) == count
        self.final_conv = reference.final_conv if whole else nn.Identity()
        info: list[Any] = [reference.feature_info[i] for i in self.out_indices]
        self.out_channels = tuple(entry["num_chs"] for entry in info)
        self.strides = tuple(entry["reduction"] for entry in info)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature pyramid of a batch of images.

        Args:
            x: images ``(B, in_channels, H, W)``, any H, W >= 1 pixel.

        Returns:
            One map ``(B, out_channels[k], ceil(H / strides[k]), ceil(W / strides[k]))``
            per entry of ``out_indices``.
        """
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i == len(self.stages) - 1:
                x = self.final_conv(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def frozen_modules(self) -> list[nn.Module]:
        """The stem from 0 on, then one stage each; the final convolution with the last."""
        if self.frozen_stages < 0:
            return []
        last = [self.final_conv] if self.frozen_stages >= len(self.plan) else []
        return [self.stem, *self.stages[: self.frozen_stages], *last]

    def reset_parameters(self) -> None:
        """Fresh weights as timm draws them."""
        copy_weights(_timm_model(*self._build), self)


class MobileVitLTMBlock(SwappedClass):
    """timm's ``MobileVitBlock`` whose transformer merges tokens; see :func:`merge_block`."""

    EXTRAS = ("with_cp",)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C_out, H, W)``."""
        refuse_tracing(x)
        shortcut, size = x, x.shape[2:]
        x = self.conv_1x1(self.conv_kxk(x))
        # As the reference: a map that patches do not fit is resized to one that they do.
        # (Not -(-n // p): ONNX divides towards zero.)
        whole = [(n + p - 1) // p * p for n, p in zip(size, self.patch_size, strict=True)]
        # Compiled and exported it always is: no branch on symbolic sizes.
        fits = not torch.compiler.is_compiling() and list(size) == whole
        if not fits:
            x = F.interpolate(x, whole, mode="bilinear", align_corners=False)
        x = self._attend(x)
        if not fits:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = self.conv_proj(x)
        if self.conv_fusion is not None:
            x = self.conv_fusion(torch.cat((shortcut, x), 1))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        """Unfold ``(B, C, H, W)``, run the transformer on each place's grid, and fold."""
        (b, c, height, width), (ph, pw) = x.shape, self.patch_size
        rows, cols = height // ph, width // pw
        x = x.reshape(b, c, rows, ph, cols, pw).permute(0, 3, 5, 2, 4, 1)
        x = x.reshape(b * ph * pw, rows * cols, c)  # (B * places, N, C)
        x = self.transformer(x, (rows, cols), with_cp=self.with_cp)
        x = self.norm(x).reshape(b, ph, pw, rows, cols, c)
        return x.permute(0, 5, 3, 1, 4, 2).reshape(b, c, height, width)


def merge_block(block: nn.Module, plan: Sequence[int], with_cp: bool = False) -> nn.Module:
    """Let a MobileViT block's transformer merge tokens, in place.

    Args:
        block: timm's ``MobileVitBlock``.
        plan: tokens that are left of every 64 after each transformer block's attention.
        with_cp: recompute the transformer's activations in the backward pass.

    Returns:
        The block itself.
    """
    merge_blocks(block.transformer, plan, TOKENS)  # type: ignore[arg-type]
    swap_class(block, MobileVitLTMBlock, with_cp=with_cp)
    return block


def resolve_stage_plans(keep: Keep, stages: Sequence[Any]) -> Plan:
    """Tokens that every transformer block of every stage keeps of 64.

    Args:
        keep: as :class:`LTMMobileViT`.
        stages: timm's stages.

    Returns:
        One tuple per stage, one int per transformer block; ``()`` without a transformer.

    Raises:
        ValueError: if the plan does not fit; the message states what is allowed.
    """
    transformers = [[b.transformer for b in s if hasattr(b, "transformer")] for s in stages]
    depths = [sum(len(t) for t in in_stage) for in_stage in transformers]
    width = next(t[0].norm1.weight.numel() for in_stage in transformers for t in in_stage)
    return resolve_plan(keep, depths, TOKENS, ("mobilevit", width), chained=True)


def _with_merging(block: nn.Module, plan: Sequence[int], with_cp: bool) -> nn.Module:
    return merge_block(block, plan, with_cp) if hasattr(block, "transformer") else block


def _timm_model(arch: str, options: dict) -> nn.Module:
    """timm's model without a classifier."""
    import timm

    return timm.create_model(MOBILEVIT.in_timm(arch), num_classes=0, **options)

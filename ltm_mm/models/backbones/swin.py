"""LTM-Swin: Swin Transformer with learnable token merging.

Papers: Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030); Efficient Visual
Transformer by Learnable Token Merging (Wang & Yang, TPAMI 2025, arXiv 2407.15219).
Keywords and parameter names follow mmdet's ``SwinTransformer`` (Apache-2.0) so that
configs and checkpoints carry over; the code is our own. Merging block by block inside
the block's own windows and residual unmerging are ours: the paper's authors published no
merging code to compare with.
"""

import os
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checkpoints.learned import Learned, Stages
from ...families import SWIN
from ...kernels import norm_to_map
from ...layers import ShiftedWindowAttention, SwinView, WindowAttention
from ...merging import Detail, MaskModule, MergeScope, MergingBlock, WindowMask, build_mask
from ...merging.masks import REGIONS
from ...presets import Keep, Plan, resolve_plan
from . import options
from .base import LTMBackbone
from .swin_layers import FeedForward, PatchEmbed, PatchMerging, build_norm

ARCHS = SWIN.sizes


class LTMSwin(LTMBackbone):
    """Swin Transformer whose blocks merge the tokens of their windows.

    A merged block f groups similar tokens in each of its (shifted) windows, runs once per group,
    and adds the update back to all tokens, ``Y = Z + U (f(X~) - X~)``. With ``keep=None`` it equals
    mmdet's ``SwinTransformer``.

    Args:
        arch: 'tiny', 'small', 'base', 'large' (or their first letters): sets
            ``embed_dims``, ``depths`` and ``num_heads``; None leaves them as given.
        keep: tokens kept per window of N = ``window_size ** 2``: None (all of them: no
            merging), a preset ('light', 'balanced', 'fast', 'fastest', 'paper'), a number for all
            blocks (an int 1..N or a share of N, a float 0..1), or one entry per stage: None, a
            number, or one of them per block, e.g. ``(None, None, (None, 25, 25, 25, 25, 25),
            None)``. A shifted window keeps at least 4, one for each part that the shift separates;
            smaller numbers are raised to 4 there.
        detail: corrects the update of merged blocks, see :class:`ltm_mm.merging.Detail`: None (no
            correction), True (starts at zero and is trained with the rest), or a file of
            ``tools/learn.py --train detail``. Details in a checkpoint are loaded without this
            option.
        pretrain_img_size: image size of ``absolute_pos_embed``, pixels.
        in_channels: channels of the image.
        embed_dims: channels of the first stage; doubled by each later stage.
        patch_size: pixels per patch side; equals ``strides[0]``.
        window_size: tokens per window side.
        mlp_ratio: hidden over input channels of the MLPs.
        depths, num_heads: blocks and attention heads per stage.
        strides: of the patch embedding and the patch mergings.
        out_indices: stages whose maps are returned; later stages are not built.
        qkv_bias, qk_scale: bias and logit scale of attention.
        patch_norm: whether patch embedding and patch mergings are normalised.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention
            weights, and of residual branches (the last block's rate), 0..1.
        use_abs_pos_embed: whether an absolute position embedding is added; it is resampled for
            other image sizes.
        act_cfg, norm_cfg: activation and normalisation layer; None: GELU and LN.
        with_cp: recompute activations in the backward pass to save memory.
        pretrained: deprecated spelling of ``init_cfg``'s checkpoint.
        convert_weights: as in mmdet; has no effect, because the source of a checkpoint (official,
            timm, mmdet) is recognised by its keys.
        frozen_stages: -1 nothing, 0 the patch embedding, k the first k stages too.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, that path alone, or None.

    Raises:
        ValueError: if an argument does not fit; the message states what is allowed.
    """

    def __init__(
        self,
        pretrain_img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        strides: Sequence[int] = (4, 2, 2, 2),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_abs_pos_embed: bool = False,
        act_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        pretrained: str | None = None,
        convert_weights: bool = False,
        frozen_stages: int = -1,
        init_cfg: dict | str | None = None,
        arch: str | None = None,
        keep: Keep = "balanced",
        detail: bool | str | os.PathLike | None = None,
    ) -> None:
        if arch is not None:
            options.check_arch(arch, ARCHS)
            embed_dims, depths, num_heads = (
                ARCHS[arch][k] for k in ("embed_dims", "depths", "num_heads")
            )
        options.check_ints_per_stage(depths=depths, num_heads=num_heads, strides=strides)
        options.check_ints(in_channels=in_channels, embed_dims=embed_dims, patch_size=patch_size)
        options.check_ints(window_size=window_size)
        options.check_image_size(pretrain_img_size=pretrain_img_size)
        options.check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        options.check_rates(drop_path_rate=drop_path_rate)
        options.check_positive(mlp_ratio=mlp_ratio)
        if qk_scale is not None:
            options.check_positive(qk_scale=qk_scale)
        options.check_flags(qkv_bias=qkv_bias, patch_norm=patch_norm, with_cp=with_cp)
        options.check_flags(use_abs_pos_embed=use_abs_pos_embed, convert_weights=convert_weights)
        options.check_layers(act_cfg=act_cfg, norm_cfg=norm_cfg)
        options.check_texts(pretrained=pretrained)
        if strides[0] != patch_size:
            raise ValueError(f"strides[0] must equal patch_size {patch_size}, got {strides[0]}")
        if pretrained and init_cfg:
            raise ValueError("give init_cfg or pretrained, not both")
        if pretrained:
            init_cfg = dict(type="Pretrained", checkpoint=pretrained)
        super().__init__(out_indices, len(depths), frozen_stages, init_cfg)
        norm_cfg = norm_cfg or dict(type="LN")
        patch_norm_cfg = norm_cfg if patch_norm else None
        self.plan = swin_plan(keep, depths, window_size, embed_dims)

        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, patch_norm_cfg)
        self.absolute_pos_embed: nn.Parameter | None = None
        if use_abs_pos_embed:
            size = pretrain_img_size
            height, width = (size, size) if isinstance(size, int) else size
            self.pos_grid = (height // patch_size, width // patch_size)
            self.absolute_pos_embed = nn.Parameter(
                torch.zeros(1, self.pos_grid[0] * self.pos_grid[1], embed_dims)
            )
        self.drop_after_pos = nn.Dropout(drop_rate)

        last_block = max(sum(depths) - 1, 1)
        rates = [drop_path_rate * k / last_block for k in range(sum(depths))]
        self.stages = nn.ModuleList()
        wanted = max(self.out_indices)
        for i, depth in enumerate(depths[: wanted + 1]):
            dim = embed_dims * 2**i
            merging = PatchMerging(dim, strides[i + 1], patch_norm_cfg) if i < wanted else None
            self.stages.append(
                SwinStage(
                    dim=dim,
                    num_heads=num_heads[i],
                    window=window_size,
                    plan=self.plan[i],
                    drop_paths=[rates.pop(0) for _ in range(depth)],
                    downsample=merging,
                    hidden=max(int(mlp_ratio * dim), 1),
                    act_cfg=act_cfg or dict(type="GELU"),
                    norm_cfg=norm_cfg,
                    with_cp=with_cp,
                    drop=drop_rate,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    attn_drop=attn_drop_rate,
                )
            )
        self.num_features = [embed_dims * 2**i for i in range(len(depths))]
        for i in self.out_indices:
            self.add_module(f"norm{i}", build_norm(norm_cfg, self.num_features[i]))
        self.out_channels = tuple(self.num_features[i] for i in self.out_indices)
        pixels = list(accumulate(strides, mul))
        self.strides = tuple(pixels[i] for i in self.out_indices)
        self.learned = self._attach(detail) if detail else None
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature pyramid of a batch of images.

        Args:
            x: images ``(B, in_channels, H, W)``, any H, W >= 1 pixel.

        Returns:
            One map ``(B, out_channels[k], ceil(H / strides[k]), ceil(W / strides[k]))``
            per entry of ``out_indices``.
        """
        x = self.patch_embed(x)  # (B, H/4, W/4, C)
        if self.absolute_pos_embed is not None:
            x = x + self._position_embedding(x.shape[1], x.shape[2])
        x = self.drop_after_pos(x)
        outs = []
        stage: Any
        for i, stage in enumerate(self.stages):
            x = stage(x)  # (B, H, W, C)
            if i in self.out_indices:
                outs.append(norm_to_map(getattr(self, f"norm{i}"), x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)

    def swin_stages(self) -> Stages:
        """Blocks with their norms, stage by stage."""
        stages: Any = self.stages
        return [[(b, (b.norm1, b.norm2)) for b in stage.blocks] for stage in stages]

    def _attach(self, detail: bool | str | os.PathLike) -> Learned | None:
        """Give merging blocks new details, or those of a file."""
        if detail is True:
            for blocks, width in zip(self.swin_stages(), self.num_features, strict=False):
                for merge in (block.merge for block, _ in blocks):
                    if isinstance(merge, MaskModule):
                        merge.detail = Detail(width)
            return None
        if not isinstance(detail, str | os.PathLike):
            raise ValueError(f"detail must be None, True or a file, got {detail!r}")
        learned = Learned.load(detail)
        if learned.weights is not None:
            raise ValueError(
                f"{detail} holds weights, too, which its detail was learned with: give it in place "
                "of the checkpoint"
            )
        learned.attach(self.swin_stages())
        return learned

    def _position_embedding(self, height: int, width: int) -> Tensor:
        """Absolute position embedding of a grid ``(1, height, width, C)``."""
        assert self.absolute_pos_embed is not None
        embed = self.absolute_pos_embed.unflatten(1, self.pos_grid)
        if (height, width) == self.pos_grid:
            return embed
        embed = F.interpolate(embed.permute(0, 3, 1, 2), (height, width), mode="bicubic")
        return embed.permute(0, 2, 3, 1)

    def frozen_modules(self) -> list[nn.Module]:
        """Patch embedding from 0 on, then one stage and its output norm each."""
        if self.frozen_stages < 0:
            return []
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        frozen = [self.patch_embed, self.drop_after_pos, *self.stages[: self.frozen_stages]]
        norms = [f"norm{i}" for i in range(self.frozen_stages) if i in self.out_indices]
        return [*frozen, *(getattr(self, name) for name in norms)]

    def reset_parameters(self) -> None:
        """Fresh weights as the reference draws them."""
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        for module in self.modules_outside_masks():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                module.init_weights()


def swin_plan(keep: Keep, depths: Sequence[int], window: int, width: int) -> Plan:
    """Tokens of a window that every block keeps.

    Args:
        keep: as :class:`LTMSwin`; every second block of a stage is shifted and keeps at least one
            token per region.
        depths: blocks per stage.
        window: tokens per window side.
        width: channels of the first stage.

    Raises:
        ValueError: if the plan does not fit; the message states what is allowed.
    """
    tokens = window * window
    return tuple(
        tuple(max(count, min(REGIONS, tokens)) if k % 2 else count for k, count in enumerate(stage))
        for stage in resolve_plan(keep, depths, tokens, ("swin", width))
    )


class SwinStage(nn.Module):
    """Blocks at one resolution.

    Args:
        dim: channels (C).
        num_heads: attention heads.
        window: tokens per window side.
        plan: tokens per window that each block keeps.
        drop_paths: rate of stochastic depth of each block.
        downsample: patch merging after the stage, called by the backbone.
        **kwargs: passed on to :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        plan: Sequence[int],
        drop_paths: Sequence[float],
        downsample: nn.Module | None,
        **kwargs: object,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                SwinBlock(
                    dim,
                    num_heads,
                    window,
                    keep,
                    shifted=k % 2 == 1,
                    drop_path=drop_paths[k],
                    **kwargs,  # type: ignore[arg-type]
                )
                for k, keep in enumerate(plan)
            )
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on a grid ``(B, H, W, C)``."""
        return self.blocks(x)


class SwinBlock(MergingBlock, MergeScope):
    """(Shifted-)window attention and the MLP, on merged tokens where planned.

    Args:
        dim: channels (C).
        num_heads: attention heads.
        window: tokens per window side (w).
        keep: merged tokens per window (P); ``w * w``: not merged.
        shifted: whether windows are shifted by half.
        hidden: channels of the MLP's hidden layer.
        drop_path: rate of stochastic depth.
        drop: dropout of outputs.
        act_cfg, norm_cfg, with_cp: as in :class:`LTMSwin`.
        **attention: passed on to the attention.
    """

    merge: WindowMask | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        keep: int,
        *,
        shifted: bool,
        hidden: int,
        drop_path: float,
        drop: float,
        act_cfg: dict,
        norm_cfg: dict,
        with_cp: bool,
        **attention: float,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = build_norm(norm_cfg, dim)
        self.attn = ShiftedWindowAttention(
            dim, num_heads, window, shifted, proj_drop=drop, **attention
        )
        self.merge = None
        if keep < window * window:
            self.merge = build_mask(window, keep, self.attn.windows.shift)
        self.norm2 = build_norm(norm_cfg, dim)
        self.ffn = FeedForward(dim, hidden, act_cfg, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        view = SwinView(
            self,
            self.attn.windows,
            self.norm1,
            self.attn,
            self.drop_path,
            self.norm2,
            self.ffn,
            self.drop_path,
            self.ffn.hidden,
            self.merge,
            layouts={"": "grid"},
        )
        if self.with_cp and x.requires_grad:
            return checkpoint(view.run, x, use_reentrant=False)
        return view.run(x)

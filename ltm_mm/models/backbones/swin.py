"""LTM-Swin: Swin Transformer with learnable token merging.

Papers: Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030); Efficient Visual
Transformer by Learnable Token Merging (Wang & Yang, TPAMI 2025, arXiv 2407.15219).
Keywords and parameter names follow mmdet's ``SwinTransformer`` (Apache-2.0) so that
configs and checkpoints carry over; the code is our own. Windowed merging, slot
attention and residual unmerging are ours: the paper's authors published no merging
code to compare with.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers import (
    ShiftedWindowAttention,
    TokenMerger,
    WindowAttention,
)
from ...ops import Merge, add_by_rows
from ...presets import Slots, resolve_plan
from ...registry import MODELS
from .base import LTMBackbone, unmerge_all
from .swin_leaves import FeedForward, PatchEmbed, PatchMerging

ARCHS: dict[str, dict] = {
    "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "large": dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
ARCHS |= {name[0]: arch for name, arch in ARCHS.items()}


@MODELS.register_module()
class LTMSwin(LTMBackbone):
    """Swin Transformer whose stages merge tokens and unmerge them for the pyramid.

    In a merged block attention runs on all tokens, its output is merged, and the
    MLP and the stage's later blocks run on slots; the stage's end leads the update
    back to all tokens. With ``slots=None`` it equals mmdet's ``SwinTransformer``.

    Args:
        arch: 'tiny', 'small', 'base', 'large' (or their first letters): sets
            ``embed_dims``, ``depths`` and ``num_heads``; None leaves them as given.
        slots: None (no merging), a preset ('light', 'balanced', 'fast', 'paper'),
            or one entry per stage: None, an int s (merge to s x s slots in the stage's
            first block), or one int per block, e.g. ``(7, 6, 6, 5, 5, 5)``: merged
            after the second and the fourth block's attention.
        steps: content steps of the mask modules, >= 0: one for the way back, those before it
            for the merge; 0 leaves the learnable spatial prior alone.
        unmerge: 'residual' returns maps of the plain backbone's size; 'none' the slots of
            the stages that merge, for a decoder that resizes its inputs (UPerNet, Semantic
            FPN, Mask2Former): ``strides`` are then no whole numbers. 'plain' is for
            comparison: ``Y = U Y~``, which loses detail.
        pretrain_img_size: image size that ``absolute_pos_embed`` is made for, pixels.
        in_channels: channels of the image.
        embed_dims: channels of the first stage; doubled by each later stage.
        patch_size: pixels per patch side; equals ``strides[0]``.
        window_size: tokens per window side.
        mlp_ratio: hidden over input channels of the MLPs.
        depths, num_heads: blocks and attention heads per stage.
        strides: of the patch embedding and the patch mergings.
        out_indices: stages whose maps are returned.
        qkv_bias, qk_scale: bias and logit scale of attention.
        patch_norm: whether patch embedding and patch mergings are normalised.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention
            weights, and of residual branches (the last block's rate), 0..1.
        use_abs_pos_embed: whether an absolute position embedding is added; it is
            resampled where the image has another size.
        act_cfg, norm_cfg: activation and normalisation layer; None: GELU and LN.
        with_cp: recompute activations in the backward pass to save memory.
        pretrained: deprecated spelling of ``init_cfg``'s checkpoint.
        convert_weights: as in mmdet; has no effect, because the source of a
            checkpoint (official, timm, mmdet) is told by its keys.
        frozen_stages: -1 nothing, 0 the patch embedding, k the first k stages too.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)`` or None.

    Raises:
        ValueError: if an argument does not fit; says what is allowed.
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
        init_cfg: dict | None = None,
        arch: str | None = None,
        slots: Slots = "balanced",
        steps: int = 2,
        unmerge: str = "residual",
    ) -> None:
        if arch is not None:
            if arch not in ARCHS:
                raise ValueError(f"unknown arch {arch!r}: choose from {', '.join(ARCHS)}")
            embed_dims, depths, num_heads = (
                ARCHS[arch][k] for k in ("embed_dims", "depths", "num_heads")
            )
        if not len(depths) == len(num_heads) == len(strides):
            raise ValueError(
                "depths, num_heads and strides must have one entry per stage each, got "
                f"{depths!r}, {num_heads!r} and {strides!r}"
            )
        if strides[0] != patch_size:
            raise ValueError(f"strides[0] must equal patch_size {patch_size}, got {strides[0]}")
        if pretrained and init_cfg:
            raise ValueError("give init_cfg or pretrained, not both")
        if pretrained:
            init_cfg = dict(type="Pretrained", checkpoint=pretrained)
        super().__init__(out_indices, unmerge, len(depths), frozen_stages, init_cfg)
        norm_cfg = norm_cfg or dict(type="LN")
        patch_norm_cfg = norm_cfg if patch_norm else None
        self.plan = resolve_plan(slots, depths, window_size, ("swin", embed_dims))
        self.plan_window = window_size

        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, patch_norm_cfg)
        self.absolute_pos_embed: nn.Parameter | None = None
        if use_abs_pos_embed:
            size = pretrain_img_size
            height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
            self.pos_grid = (height // patch_size, width // patch_size)
            self.absolute_pos_embed = nn.Parameter(
                torch.zeros(1, self.pos_grid[0] * self.pos_grid[1], embed_dims)
            )
        self.drop_after_pos = nn.Dropout(drop_rate)

        last_block = max(sum(depths) - 1, 1)
        rates = [drop_path_rate * k / last_block for k in range(sum(depths))]
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            dim = embed_dims * 2**i
            last = i == len(depths) - 1
            self.stages.append(
                SwinStage(
                    dim=dim,
                    num_heads=num_heads[i],
                    window=window_size,
                    plan=self.plan[i],
                    drop_paths=[rates.pop(0) for _ in range(depth)],
                    downsample=None if last else PatchMerging(dim, strides[i + 1], patch_norm_cfg),
                    hidden=int(mlp_ratio * dim),
                    steps=steps,
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
            self.add_module(f"norm{i}", build_norm_layer(norm_cfg, self.num_features[i])[1])
        self.out_channels = tuple(self.num_features[i] for i in self.out_indices)
        self.strides = self.out_strides(list(accumulate(strides, mul)))
        self.complete()

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
        for i, stage in enumerate(self.stages):
            x, slots = stage(x)  # (B, H, W, C), (B, h, w, C)
            if i in self.out_indices:
                out = x if self.unmerge != "none" else slots
                channel_first = getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2)
                outs.append(channel_first.clone(memory_format=torch.contiguous_format))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)

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


class SwinStage(nn.Module):
    """Blocks on one resolution; merges on the way in, unmerges at the end.

    Args:
        dim: channels (C).
        num_heads: attention heads.
        window: tokens per window side.
        plan: slots per window side that each block's MLP runs on.
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
        grids = (window, *plan[:-1])  # tokens per window side that come into each block
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                num_heads,
                window,
                grid,
                slots,
                shifted=k % 2 == 1,
                drop_path=drop_paths[k],
                **kwargs,  # type: ignore[arg-type]
            )
            for k, (grid, slots) in enumerate(zip(grids, plan, strict=True))
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on a grid ``(B, H, W, C)``; see :func:`run_blocks`."""
        return run_blocks(self.blocks, x)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a stage's blocks and undo the merges they made.

    Args:
        blocks: :class:`SwinBlock` modules.
        x: tokens ``(B, H, W, C)``.

    Returns:
        Tokens of the same shape, and the slots that the last block left
        ``(B, h, w, C)``; both are the same where nothing merges.
    """
    merges: list[Merge] = []
    for block in blocks:
        x, merged = block(x, merges[-1] if merges else None)
        if merged is not None:
            merges.append(merged)
    return unmerge_all(x, merges), x


class SwinBlock(nn.Module):
    """(Shifted-)window attention, a merge where planned, and the MLP.

    Args:
        dim: channels (C).
        num_heads: attention heads.
        window: tokens per window side that the checkpoint was made for.
        grid: tokens or slots per window side that come in.
        slots: slots per window side that go out.
        shifted: whether windows are shifted by half.
        hidden: channels of the MLP's hidden layer.
        drop_path: rate of stochastic depth.
        steps: content steps of the mask module.
        drop: dropout of outputs.
        act_cfg, norm_cfg, with_cp: as in :class:`LTMSwin`.
        **attention: passed on to the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        grid: int,
        slots: int,
        *,
        shifted: bool,
        hidden: int,
        drop_path: float,
        steps: int,
        drop: float,
        act_cfg: dict,
        norm_cfg: dict,
        with_cp: bool,
        **attention: float,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.attn = ShiftedWindowAttention(
            dim, num_heads, window, grid, shifted, proj_drop=drop, **attention
        )
        self.merge = TokenMerger(grid, slots, steps) if slots < grid else None
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.ffn = FeedForward(dim, hidden, act_cfg, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, earlier: Merge | None) -> tuple[Tensor, Merge | None]:
        """Run the block.

        Args:
            x: tokens or slots ``(B, H, W, C)``.
            earlier: the merge that made them slots, if any.

        Returns:
            The grid that goes out, and this block's merge if it makes one.
        """
        if self.with_cp and x.requires_grad:
            return checkpoint(self._run, x, earlier, use_reentrant=False)
        return self._run(x, earlier)

    def _run(self, x: Tensor, earlier: Merge | None) -> tuple[Tensor, Merge | None]:
        x = x + self.drop_path(self.attn(x, self.norm1))
        merged = None
        if self.merge is not None:
            merged = self.merge(x, earlier.slot_mass() if earlier else None)
            x = merged.slots
        if self.training:  # stochastic depth drops whole images
            return x + self.drop_path(self.ffn(self.norm2(x))), merged
        return add_by_rows(x, lambda rows: self.ffn(self.norm2(rows)), self.ffn.hidden), merged

"""LTM-ViT: Vision Transformer with learnable token merging.

Papers: An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929);
Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet, Li et al.,
ECCV 2022, arXiv 2203.16527) for the pyramid; Efficient Visual Transformer by Learnable
Token Merging (Wang & Yang, TPAMI 2025, arXiv 2407.15219). The blocks are timm's
(Apache-2.0, ``timm.models.vision_transformer``) under timm's parameter names. How patches
are matched and residual unmerging are ours: the paper's authors published no merging code
to compare with.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...families import VIT
from ...presets import Keep, resolve_plan
from .base import LTMBackbone, copy_weights, norm_option
from .global_blocks import merge_blocks
from .options import check_flags, check_image_size, check_ints, check_rates

ARCHS = VIT.archs
TIMMS = dict(embed_dims="embed_dim", num_layers="depth")  # timm's names of our keywords
TOKENS = 196  # patches of a 224 x 224 image, which a plan's numbers refer to


class LTMViT(LTMBackbone):
    """Plain ViT whose blocks merge the patches of the whole image.

    In a merged block, attention runs on all input tokens, the patch tokens of its output are
    merged, and the MLP and the later blocks run on merged tokens, whose keys count once per patch
    they stand for. A map is unmerged to all patches where it is taken; later blocks continue with
    merged tokens. With ``keep=None`` it equals timm's ``forward_intermediates``.

    Args:
        arch: 'tiny', 'small', 'base', 'large' (patches of 16 pixels), or the timm name of any ViT
            with plain blocks, e.g. 'vit_base_patch14_reg4_dinov2'.
        keep: patch tokens that are kept: None (all: no merging), a preset ('light',
            'balanced', 'fast', 'paper'), or, because a ViT is one stage, one entry in a tuple:
            a number, or one per block, never rising. A number is a share (a float 0..1), or an int
            per 196 patches of the image (14 x 14, those of 224 pixels).
        img_size, patch_size, in_channels, embed_dims, num_layers, num_heads: image side of the
            position embedding in pixels, pixels per patch side, channels of the image, channels,
            blocks and attention heads; None: the arch's own.
        out_indices: blocks whose maps are returned; an int: so many of the last ones, as
            in timm; None: with a pyramid the last one, else four, the last of each
            quarter. Later blocks are not built.
        simple_pyramid: make four maps of strides 1/4, 1/2, 1 and 2 patches from the one
            map of ``out_indices`` (ViTDet's), for detectors. Without it, all maps have the patches'
            stride, as UPerNet's MultiLevelNeck expects.
        final_norm: apply the ViT's last norm to the maps, as before its classifier.
        drop_path_rate: of the last block's residual branches, 0..1.
        norm_layer: name of another normalisation layer of mmengine's registry, e.g. 'LN'.
        frozen_stages: -1 nothing, 0 patch and position embedding, k the first k blocks
            too.
        with_cp: recompute activations in the backward pass to save memory.
        init_cfg: ``dict(type='Pretrained', checkpoint=path or URL)``, that path alone, or None.

    Raises:
        ValueError: if an argument does not fit; the message states what is allowed.
    """

    def __init__(
        self,
        arch: str = "small",
        keep: Keep = "balanced",
        img_size: int | None = None,
        patch_size: int | None = None,
        in_channels: int = 3,
        embed_dims: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        out_indices: Sequence[int] | int | None = None,
        simple_pyramid: bool = False,
        final_norm: bool = False,
        drop_path_rate: float = 0.0,
        norm_layer: str | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | str | None = None,
    ) -> None:
        given = dict(
            patch_size=patch_size, embed_dims=embed_dims, num_layers=num_layers, num_heads=num_heads
        )
        sizes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        check_ints(in_channels=in_channels, **sizes)
        check_rates(drop_path_rate=drop_path_rate)
        check_flags(simple_pyramid=simple_pyramid, final_norm=final_norm, with_cp=with_cp)
        options: dict = {TIMMS.get(k, k): v for k, v in sizes.items()}
        if img_size is not None:
            check_image_size(img_size=img_size)
            options["img_size"] = img_size
        options |= dict(in_chans=in_channels, drop_path_rate=drop_path_rate)
        options |= norm_option(norm_layer)
        reference: Any = _timm_model(arch, options)
        depth, dim = len(reference.blocks), reference.embed_dim
        if out_indices is None:
            quarters = [max(depth * k // 4 - 1, 0) for k in (1, 2, 3, 4)]
            out_indices = quarters[-1:] if simple_pyramid else sorted(set(quarters))
        super().__init__(out_indices, depth, frozen_stages, init_cfg)
        if simple_pyramid and len(self.out_indices) != 1:
            raise ValueError(
                f"simple_pyramid is made from one block's map, got out_indices {out_indices!r}"
            )
        self.plan = resolve_plan(keep, (depth,), TOKENS, ("vit", dim), chained=True)
        self._build = (arch, options)
        built = max(self.out_indices) + 1

        self.cls_token, self.reg_token = reference.cls_token, reference.reg_token
        self.pos_embed = reference.pos_embed
        self.pos_grid = tuple(reference.patch_embed.grid_size)
        self.pos_of_prefix = not reference.no_embed_class
        self.patch_embed = reference.patch_embed
        self.norm_pre = reference.norm_pre
        self.prefix, self.with_cp = reference.num_prefix_tokens, with_cp
        self.blocks = merge_blocks(
            reference.blocks[:built], self.plan[0][:built], TOKENS, self.prefix
        )
        self.norm = _last_norm(reference) if final_norm else nn.Identity()
        self.pyramid = SimplePyramid(dim) if simple_pyramid else None
        stride = self.patch_embed.patch_size[0]
        self.out_channels = (dim,) * len(self.out_indices)
        self.strides = (stride,) * len(self.out_indices)
        if simple_pyramid:
            if stride % 4:
                raise ValueError(f"simple_pyramid needs patches of 4n pixels, got {stride}")
            self.out_channels = (dim // 4, dim // 2, dim, dim)
            self.strides = (stride // 4, stride // 2, stride, stride * 2)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a batch of images.

        Args:
            x: images ``(B, in_channels, H, W)``, any H, W >= 1 pixel.

        Returns:
            One map ``(B, out_channels[k], ceil(H / strides[k]), ceil(W / strides[k]))``
            per entry of ``out_indices``, or the four of the pyramid.
        """
        image = x.shape[2:]
        grid = self.patch_embed(x)  # (B, h, w, C)
        size = (grid.shape[1], grid.shape[2])
        tokens = self.norm_pre(self._embed(grid))  # (B, T + h * w, C)
        maps = [
            self.norm(y)[:, self.prefix :].unflatten(1, size).permute(0, 3, 1, 2).contiguous()
            for y in self.blocks(tokens, size, self.out_indices, self.with_cp)
        ]
        if self.pyramid is None:
            return tuple(maps)
        sizes = [[(n + s - 1) // s for n in image] for s in self.strides]
        levels = zip(self.pyramid(maps[0]), sizes, strict=True)
        return tuple(level[:, :, :h, :w] for level, (h, w) in levels)

    def _embed(self, grid: Tensor) -> Tensor:
        """Patches ``(B, h, w, C)`` -> all tokens, with positions ``(B, T + h * w, C)``."""
        from timm.layers import resample_abs_pos_embed

        size = [grid.shape[1], grid.shape[2]]
        x = grid.flatten(1, 2)
        extra = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        position: Tensor | int = 0
        if self.pos_embed is not None:
            prefix = self.prefix if self.pos_of_prefix else 0
            position = resample_abs_pos_embed(self.pos_embed, size, list(self.pos_grid), prefix)
        if self.pos_of_prefix:
            return torch.cat((*extra, x), 1) + position
        return torch.cat((*extra, x + position), 1)

    def frozen_modules(self) -> list[nn.Module]:
        """The embedding from 0 on, then one block each."""
        if self.frozen_stages < 0:
            return []
        for parameter in (self.cls_token, self.reg_token, self.pos_embed):
            if parameter is not None:
                parameter.requires_grad_(False)
        return [self.patch_embed, self.norm_pre, *list(self.blocks)[: self.frozen_stages]]

    def reset_parameters(self) -> None:
        """Fresh weights as timm draws them."""
        arch, options = self._build
        copy_weights(_timm_model(arch, options), self)
        module: Any
        for module in self.pyramid.modules() if self.pyramid is not None else ():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


class SimplePyramid(nn.Module):
    """Four maps from a plain ViT's last one (ViTDet, section 3).

    The 1 x 1 and 3 x 3 convolutions that follow in ViTDet are part of the neck here, mmdet's
    ``ChannelMapper``.

    Args:
        dim: channels of the map (C), a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            nn.GroupNorm(1, dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(dim, dim // 2, 2, 2)
        self.down2 = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, C, h, w)`` -> maps of 4, 2, 1 and 1/2 times its size, C/4, C/2, C, C channels."""
        return self.up4(x), self.up2(x), x, self._halved(x)

    def _halved(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.down2(x)
        # Written out: PyTorch's kernel asks whether a symbolic size is even.
        height, width = ((n + 1) // 2 for n in x.shape[2:])
        missing = (0, 2 * width - x.shape[3], 0, 2 * height - x.shape[2])
        x = F.pad(x, missing, value=-torch.inf)
        return x.unflatten(3, (width, 2)).unflatten(2, (height, 2)).amax((3, 5))


def _last_norm(reference: Any) -> nn.Module:
    """The norm before the classifier, which timm keeps in one of two places."""
    return reference.fc_norm if isinstance(reference.norm, nn.Identity) else reference.norm


def _timm_model(arch: str, options: dict) -> nn.Module:
    """timm's model for images of any size, without a classifier."""
    import timm

    name = VIT.in_timm(str(arch))
    if not timm.models.is_model_in_modules(name.partition(".")[0], ["vision_transformer"]):
        raise ValueError(
            f"unknown arch {arch!r}: choose from {', '.join(ARCHS)}, or a ViT of timm such as "
            "'vit_small_patch16_384'"
        )
    options = dict(num_classes=0, dynamic_img_size=True, dynamic_img_pad=True) | options
    try:
        return timm.create_model(name, **options)
    except AssertionError as error:  # channels that the heads do not divide
        raise ValueError(f"arch {arch!r} cannot be built: {error}") from error

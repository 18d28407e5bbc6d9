"""Small Swins of every library, by name."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.contract import settled

from .official import OfficialSwin

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))
ODD, EVEN = (84, 132), (224, 224)


def mm_swin(package: str) -> nn.Module:
    """mmdet's, mmseg's or mmpretrain's backbone."""
    if package == "mmpretrain":
        from mmpretrain.models import SwinTransformer

        arch = dict(embed_dims=16, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8])
        return SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3), pad_small_map=True)
    if package == "mmdet":
        from mmdet.models.backbones import SwinTransformer
    else:
        from mmseg.models.backbones import SwinTransformer
    return SwinTransformer(**TINY)


def timm_swin(v2: bool = False, **options: object) -> nn.Module:
    """timm's classifier."""
    name = "swinv2_tiny_window8_256" if v2 else "swin_tiny_patch4_window7_224"
    arguments = dict(embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), num_classes=5)
    arguments |= dict(img_size=224, window_size=7, strict_img_size=False, always_partition=True)
    return timm.create_model(name, **arguments | options)


def torchvision_swin(v2: bool = False) -> nn.Module:
    """torchvision's classifier."""
    from torchvision.models import swin_transformer as tv

    arguments = dict(patch_size=[4, 4], embed_dim=16, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8])
    arguments |= dict(window_size=[7, 7], num_classes=5)
    if v2:
        arguments |= dict(block=tv.SwinTransformerBlockV2, downsample_layer=tv.PatchMergingV2)
    return tv.SwinTransformer(**arguments)


SOURCES: dict[str, Callable[[], nn.Module]] = {
    "mmdet": lambda: mm_swin("mmdet"),
    "mmseg": lambda: mm_swin("mmseg"),
    "mmpretrain": lambda: mm_swin("mmpretrain"),
    "timm": timm_swin,
    "timm v2": lambda: timm_swin(True),
    "torchvision": torchvision_swin,
    "torchvision v2": lambda: torchvision_swin(True),
    "official detector": OfficialSwin,
    "official detector v2": lambda: OfficialSwin(v2=True),
    "official classifier": lambda: OfficialSwin(224),
    "official classifier v2": lambda: OfficialSwin(224, v2=True),
}
# Nearly the code of others: mmdet's, and the two kinds of blocks and of sizes apart.
SLOW = ("mmseg", "official detector v2", "official classifier v2")
sources = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SOURCES]
)
ONE_SIZE = ("official classifier", "official classifier v2")


def build(name: str) -> nn.Module:
    """A source's model in eval mode, with weights that do something."""
    torch.manual_seed(0)
    model = settled(SOURCES[name]())
    model.train(False)
    return model


def outputs(model: nn.Module, size: tuple[int, int] = EVEN, grad: bool = False) -> list[Tensor]:
    """All that comes out for one image."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        out = model(x)
    return list(out) if isinstance(out, list | tuple) else [out]

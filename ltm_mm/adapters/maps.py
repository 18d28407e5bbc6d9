"""The feature maps of a model's backbone, whoever built it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..models.backbones.base import LTMBackbone
from .families import SwinAdapter, adapter_of


@torch.no_grad()
def run_with_maps(
    model: Any,
    image: object,
    predict: Callable[[nn.Module, object], object],
    maps: Callable[[nn.Module, object], Sequence[Tensor]] | None = None,
) -> tuple[object, list[Tensor]]:
    """What a model predicts for an image, and the maps of its backbone.

    Args:
        model: a backbone, or a model with one.
        image: what ``predict`` takes.
        predict: gets model and image; a backbone's returns its maps.
        maps: gets model and image, returns the backbone's maps; None: those of
            ``model.backbone`` where that is called, of timm's ``forward_intermediates``, else of
            every Swin stage.

    Returns:
        The prediction (None where there are only maps), and the maps ``(B, C, h, w)``.

    Raises:
        ValueError: if no maps are found.
    """
    caught: list[Any] = []
    handles = []
    if maps is None and hasattr(model, "backbone"):
        hook = model.backbone.register_forward_hook(lambda m, a, out: caught.append(out))
        handles.append(hook)
    elif maps is None and not hasattr(model, "forward_intermediates"):
        handles += _catch_stages(model, caught)
    try:
        out = plain_output(predict(model, image))
    finally:
        for handle in handles:
            handle.remove()
    collected = [m for one in map(plain_output, caught) for m in _as_list(one)]
    if _are_maps(out):
        collected, out = list(out), None
    elif maps is not None:
        collected = list(maps(model, image))
    elif not collected:
        collected = backbone_maps(model, image)
    return out, collected


def as_images(images: object) -> list[Tensor]:
    """What a caller gives as images, each as a batch ``(B, C, H, W)``.

    Args:
        images: float tensors ``(C, H, W)`` or ``(B, C, H, W)``, in any iterable; a batch is one.

    Raises:
        ValueError: for anything else, and for values that are not finite.
    """
    wanted = "images must be normalised float tensors (C, H, W) or (1, C, H, W)"
    if isinstance(images, str) or not isinstance(images, Iterable):
        raise ValueError(f"{wanted}, got {images!r}")
    batches = []
    for image in images:
        if not isinstance(image, Tensor):
            raise ValueError(f"{wanted}, got a {type(image).__name__} among them")
        if image.ndim not in (3, 4) or not image.numel() or not image.is_floating_point():
            raise ValueError(f"{wanted}, got {image.dtype} of shape {tuple(image.shape)}")
        if not image.isfinite().all():
            raise ValueError("images must be finite, one of them has values that are not")
        image = image.clone() if image.is_inference() else image  # which no gradient could pass
        batches.append(image if image.ndim == 4 else image[None])
    return batches


def _as_list(out: Any) -> Sequence[Tensor]:
    return [out] if isinstance(out, Tensor) else out


def _catch_stages(model: Any, caught: list[object]) -> list[RemovableHandle]:
    """Hooks that catch the output map of every Swin stage."""

    def catch(block: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        caught.append(adapter_of(block).as_map(block, (*args, *kwargs.values()), out))

    last = [stage[-1] for stages in SwinAdapter.backbones(model) for stage in stages]
    return [block.register_forward_hook(catch, with_kwargs=True) for block in last]


def plain_output(out: Any) -> Any:
    """Logits or maps of an output of transformers (None: it has none); another output as it is."""
    if hasattr(out, "masks_queries_logits"):  # MaskFormer's kinds: classes of masks
        classes = out.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, out.masks_queries_logits.sigmoid())
    for key in ("logits", "feature_maps"):
        if getattr(out, key, None) is not None:
            return getattr(out, key)
    return None if isinstance(out, Mapping) else out  # nothing that could be compared


def _are_maps(out: Any) -> bool:
    return isinstance(out, tuple | list) and all(isinstance(m, Tensor) for m in out)


def backbone_maps(model: Any, image: object) -> list[Tensor]:
    """Maps of a model's backbone, or of one itself; of a timm ViT those of four blocks.

    Args:
        model: a backbone, or a model with one.
        image: ``(1, 3, H, W)``, normalised.

    Raises:
        ValueError: if no maps are found.
    """
    backbone: Any = getattr(model, "backbone", model)
    if hasattr(backbone, "forward_intermediates"):
        options: dict[str, Any] = {}
        if hasattr(backbone, "blocks"):  # a ViT: the last block of each quarter
            depth = len(backbone.blocks)
            options["indices"] = sorted({max(depth * k // 4 - 1, 0) for k in (1, 2, 3, 4)})
            options["norm"] = True
        return backbone.forward_intermediates(image, intermediates_only=True, **options)
    out = plain_output(backbone(image))
    if not _are_maps(out):
        raise ValueError(
            f"{type(backbone).__name__} returns no maps: give a function of model and image that "
            "returns what to compare"
        )
    return list(out)


def feature_maps(model: Any, images: Tensor) -> list[Tensor]:
    """Maps of a model's backbone for a batch, with gradients where they are on.

    Args:
        model: a backbone, or a model with one.
        images: ``(B, C, H, W)``, normalised.

    Returns:
        Maps ``(B, C', h, w)``: of ``model.backbone``, of timm's ``forward_intermediates``, else of
        every Swin stage.

    Raises:
        ValueError: if no maps are found.
    """
    inner = getattr(model, "backbone", model)
    if isinstance(inner, LTMBackbone):
        return list(inner(images))
    if hasattr(inner, "forward_intermediates"):
        return backbone_maps(model, images)
    caught: list[Any] = []
    handles = _catch_stages(model, caught)
    try:
        out = plain_output(inner(images))
    finally:
        for handle in handles:
            handle.remove()
    maps = list(out) if _are_maps(out) else caught
    if not maps:
        raise ValueError(f"{type(model).__name__} returns no maps and has no Swin stages to learn")
    return maps

"""Bring a checkpoint into a backbone's names and sizes, or say why it cannot be."""

import logging
import math
import re
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import preview
from ..merging import grow_details
from .detect import detect, unwrap
from .mm import strip_prefixes
from .optional import print_log

MERGE = re.compile(r"(^|\.)merge\.")
# Follow from sizes alone, or count batches.
DERIVED = re.compile(r"\.(relative_position_index|attn_mask|num_batches_tracked)$")
# May be missing or left over: these, merging, a ViT's pyramid, and the norms of outputs (an
# ImageNet checkpoint has none, one made for other out_indices has others; a ViT has one).
OPTIONAL = re.compile(rf"{MERGE.pattern}|{DERIVED.pattern}|^norm\d*\.|^pyramid\.")


def to_backbone(
    weights: Mapping, backbone: nn.Module, prefix: str | None = None, adapt: bool = True
) -> dict[str, Tensor]:
    """Bring weights of any known source into a backbone's names, order and table sizes.

    Args:
        weights: a checkpoint or a state dict; heads in it are left out.
        backbone: the backbone to fit; gets the details that the weights hold, see
            :class:`ltm_mm.merging.Detail`, and is not changed otherwise.
        prefix: of the backbone's keys; None: told by the keys.
        adapt: whether weights for RGB images may be adapted to other channels.

    Returns:
        A state dict with keys and shapes of ``backbone``; what ``OPTIONAL`` names may be
        missing.

    Raises:
        ValueError: if the weights are of another size or architecture; says where.
    """
    state: dict[str, Tensor] = unwrap(weights)
    if prefix:
        prefix = prefix.rstrip(".") + "."
        state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if not state:
            raise ValueError(f"no key of the checkpoint starts with the prefix {prefix!r}")
    state = strip_prefixes(state)
    source = detect(state)
    if source:
        try:
            state = source.convert(state)
        except (RuntimeError, KeyError, IndexError) as error:
            raise ValueError(
                f"the checkpoint has keys of {source.name}, but not its shapes ({error})"
            ) from error
    grow_details(backbone, state)
    model_state = backbone.state_dict()
    if adapt:
        _adapt_stem(state, model_state)
    grid = getattr(backbone, "pos_grid", None)
    state = {
        k: resize(k, v, model_state[k], grid) if k in model_state else v for k, v in state.items()
    }
    _check(state, model_state, type(backbone).__name__, source.name if source else "unknown source")
    return {k: v for k, v in state.items() if k in model_state and v.shape == model_state[k].shape}


def _adapt_stem(state: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Fit the first convolution's weights for RGB to other channels, in place, as timm does."""
    from timm.models import adapt_input_conv

    for key, value in state.items():
        wanted = model_state[key].shape if key in model_state else ()
        if value.ndim != 4 or len(wanted) != 4 or value.shape[1] != 3 or wanted[1] == 3:
            continue
        if (value.shape[0], *value.shape[2:]) == (wanted[0], *wanted[2:]):
            state[key] = adapt_input_conv(wanted[1], value)
            print_log(
                f"{key}: weights for 3 channels are adapted to {wanted[1]}, "
                + ("summed up" if wanted[1] == 1 else "repeated and scaled"),
                "current",
                logging.WARNING,
            )


def resize(key: str, value: Tensor, target: Tensor, grid: Sequence[int] | None = None) -> Tensor:
    """Resample a position table for another window or image size, as mmdet does (bicubic).

    Args:
        key: the parameter's name; anything but a position table is returned as it is.
        value: ``(S * S, heads)`` relative biases, or ``(1, S * S, C)`` absolute embedding;
            a ViT's ``pos_embed`` may have those of class and register tokens before them,
            which stay, and is resampled as timm does (antialiased).
        target: the parameter it is for.
        grid: rows and columns of the target's absolute embedding; None: a square.

    Returns:
        A table of the target's shape; ``value`` itself where that cannot be.
    """
    if key.endswith("relative_position_bias_table"):
        tokens, grid = 0, None
    elif key.endswith("absolute_pos_embed"):
        tokens = 1
    elif key == "pos_embed" and grid and value.shape[1] != target.shape[1]:
        return _resize_vit(value, target, grid)
    else:
        return value
    side, new = math.isqrt(value.shape[tokens]), math.isqrt(target.shape[tokens])
    rows, cols = grid or (new, new)
    same = value.shape == target.shape or value.shape[-1] != target.shape[-1]
    if same or side**2 != value.shape[tokens] or rows * cols != target.shape[tokens]:
        return value
    table = value.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, C, S, S)
    table = F.interpolate(table.float(), (rows, cols), mode="bicubic").to(value.dtype)
    return table.permute(0, 2, 3, 1).reshape(target.shape)


def _resize_vit(value: Tensor, target: Tensor, grid: Sequence[int]) -> Tensor:
    """:func:`resize` of a ViT's embedding ``(1, T + S * S, C)``."""
    from timm.layers import resample_abs_pos_embed

    prefix = target.shape[1] - grid[0] * grid[1]
    side = math.isqrt(value.shape[1] - prefix)
    if side**2 != value.shape[1] - prefix or value.shape[-1] != target.shape[-1]:
        return value
    return resample_abs_pos_embed(value, list(grid), [side, side], prefix)


def _check(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], name: str, source: str
) -> None:
    """Raise a ValueError that says where a state dict and a backbone's disagree."""
    if not any(key in model_state for key in state):
        raise ValueError(
            f"the checkpoint ({source}) is of another architecture than {name}: it holds "
            f"{preview(list(state), 3)}, the model wants {preview(list(model_state), 3)}"
        )
    missing = [k for k in model_state if k not in state and not OPTIONAL.search(k)]
    extra = [k for k in state if k not in model_state and not OPTIONAL.search(k)]
    extra = [k for k in extra if not _follows_last_stage(k, model_state)]
    shapes = [
        f"{k}: checkpoint {tuple(v.shape)}, model {tuple(model_state[k].shape)}"
        for k, v in state.items()
        if k in model_state and v.shape != model_state[k].shape and not OPTIONAL.search(k)
    ]
    parts = (("missing", missing), ("not in the model", extra), ("of another shape", shapes))
    wrong = [f"{len(keys)} keys {what} ({preview(keys, 3)})" for what, keys in parts if keys]
    if wrong:
        raise ValueError(
            f"the checkpoint ({source}: {_size(state)}) does not fit {name} "
            f"({_size(model_state)}): " + "; ".join(wrong)
        )


def _follows_last_stage(key: str, model_state: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to what follows the last stage of a shortened backbone."""
    if key.startswith("final_conv."):
        return not any(k.startswith("final_conv.") for k in model_state)
    part = re.compile(r"(?:stages|blocks)\.(\d+)\.(downsample\.)?")
    match = part.match(key)
    last = max((int(m[1]) for k in model_state if (m := part.match(k))), default=-1)
    return match is not None and int(match[1]) + bool(match[2]) > last >= 0


def _size(state: Mapping[str, Tensor]) -> str:
    """Width of the stem and blocks per stage, which tell a Swin-T from a Swin-S."""
    convs = ("patch_embed.projection", "patch_embed.proj", "stem.in_conv.conv", "stem.conv")
    stems = [f"{conv}.weight" for conv in convs]
    width = next((state[k].shape[0] for k in stems if k in state), "unknown")
    last: dict[int, int] = {}
    for key in state:
        if match := re.match(r"(?:stages\.(\d+)\.)?(?:blocks\.)?(\d+)\.", key):
            stage, block = int(match[1] or 0), int(match[2])
            last[stage] = max(last.get(stage, 0), block)
    return f"width {width}, blocks {tuple(last[i] + 1 for i in sorted(last))}"

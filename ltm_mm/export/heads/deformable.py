"""Deformable attention over maps of any size (ours; follows Zhu et al., ICLR 2021).

mmcv and mmdet hand the sizes of the maps on in a tensor, whose numbers a program cannot use
as sizes. Here they stay sizes: a list of (height, width).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = Sequence[tuple[int, int]]


@contextmanager
def sizes_in_lists() -> Iterator[None]:
    """While a model is run, its deformable attention takes sizes as lists."""
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet.models.layers import MSDeformAttnPixelDecoder

    with (
        patch.object(MultiScaleDeformableAttention, "forward", _attend),
        patch.object(MSDeformAttnPixelDecoder, "forward", _pixel_decoder),
    ):
        yield


def centres(size: Sequence[int], like: Tensor) -> Tensor:
    """Centres of a map's pixels, x y in 0..1: ``(H * W, 2)``."""
    height, width = size
    x = (torch.arange(width, device=like.device) + 0.5).to(like) / width
    y = (torch.arange(height, device=like.device) + 0.5).to(like) / height
    return torch.stack((x.repeat(height), y[:, None].repeat(1, width).reshape(-1)), dim=-1)


def _attend(
    self: nn.Module,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Sizes = (),
    **kwargs: object,
) -> Tensor:
    """``forward`` of mmcv's ``MultiScaleDeformableAttention``; nothing is padded."""
    identity = query if identity is None else identity
    value = query if value is None else value
    query = query if query_pos is None else query + query_pos
    if not self.batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    batch, queries, _ = query.shape
    heads, levels, points = self.num_heads, self.num_levels, self.num_points
    weights = self.attention_weights(query).reshape(batch, queries, heads, levels * points)
    weights = weights.softmax(-1).reshape(batch, queries, heads, levels, points)
    offsets = self.sampling_offsets(query).reshape(batch, queries, heads, levels, points, 2)
    value = self.value_proj(value).reshape(batch, value.shape[1], heads, -1)
    attended = value.new_zeros(())
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        reference = reference_points[:, :, None, level, None]  # (B, Q, 1, 1, 2 or 4)
        offset = offsets[:, :, :, level]  # (B, Q, heads, points, 2)
        if reference.shape[-1] == 2:
            one = offset.new_ones(1)
            place = reference + offset / torch.cat((one * width, one * height))
        else:
            place = reference[..., :2] + offset / points * reference[..., 2:] * 0.5
        grid = (2 * place - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, points, 2)
        pixels = value[:, start : start + height * width]  # (B, H * W, heads, D)
        pixels = pixels.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        sampled = F.grid_sample(pixels, grid, align_corners=False)  # (B * heads, D, Q, points)
        share = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        attended = attended + (sampled * share).sum(-1)
        start = start + height * width
    attended = attended.reshape(batch, -1, queries).transpose(1, 2)
    attended = self.output_proj(attended)
    if not self.batch_first:
        attended = attended.transpose(0, 1)
    return self.dropout(attended) + identity


def encode(encoder: nn.Module, query: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
    """mmdet's ``DeformableDetrTransformerEncoder`` on images without padding.

    Args:
        encoder: with its layers.
        query, position: ``(B, N, C)``, the pixels of all maps.
        sizes: of the maps.
    """
    points = torch.cat([centres(size, query) for size in sizes])[None, :, None]
    points = points.repeat(query.shape[0], 1, len(sizes), 1)
    for layer in encoder.layers:
        query = layer(
            query=query,
            query_pos=position,
            key_padding_mask=None,
            reference_points=points,
            spatial_shapes=sizes,
        )
    return query


def _pixel_decoder(self: nn.Module, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``forward`` of mmdet's ``MSDeformAttnPixelDecoder``."""
    batch = feats[0].shape[0]
    maps = [feats[self.num_input_levels - i - 1] for i in range(self.num_encoder_levels)]
    sizes = [tuple(m.shape[-2:]) for m in maps]
    queries, positions = [], []
    for index, (x, size) in enumerate(zip(maps, sizes, strict=True)):
        nothing = x.new_zeros((batch, *size), dtype=torch.bool)
        level = self.level_encoding.weight[index].reshape(1, -1, 1, 1)
        positions.append((self.postional_encoding(nothing) + level).flatten(2).transpose(1, 2))
        queries.append(self.input_convs[index](x).flatten(2).transpose(1, 2))
    memory = encode(self.encoder, torch.cat(queries, 1), torch.cat(positions, 1), sizes)
    memory = memory.transpose(1, 2)  # (B, C, N)
    outs, start = [], 0
    for height, width in sizes:
        part = memory[:, :, start : start + height * width]
        outs.append(part.reshape(batch, -1, height, width))
        start = start + height * width
    for index in range(self.num_input_levels - self.num_encoder_levels - 1, -1, -1):
        side = self.lateral_convs[index](feats[index])
        up = F.interpolate(outs[-1], side.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(self.output_convs[index](side + up))
    return self.mask_feature(outs[-1]), outs[: self.num_outs]

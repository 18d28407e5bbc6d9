"""What a model's merges did to an image: which pixels share a merged token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engine.build import evaluating
from ..engine.merging_blocks import block_of
from ..merging import Merge, record_merges
from ..models.losses.token_labels import token_stride

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels of the image
MIN_GROUP, MIN_SIDE = 10, 800  # pixels of an average group's and a drawn map's side at least ...
MAX_SIDE = 4096  # ... unless the map would grow beyond this


@dataclass(frozen=True)
class View:
    """How an image lies in the network's input: resized, at the top left of the padding.

    Attributes:
        image: height and width of the image, pixels.
        resized: height and width of what the network sees of it, pixels.
    """

    image: tuple[int, int]
    resized: tuple[int, int]

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "View":
        """The view that a data sample's ``metainfo`` tells of.

        Raises:
            ValueError: if the pipeline cut or flipped the image.
        """
        height, width = meta["ori_shape"][:2]
        columns, rows = meta.get("scale_factor", (1.0, 1.0))[:2]
        resized = (round(height * rows), round(width * columns))
        # mmdet's Pad writes the padded size into img_shape: larger is right, smaller is not.
        if any(seen < needed for seen, needed in zip(meta["img_shape"], resized, strict=False)):
            raise ValueError(
                f"the test pipeline makes {tuple(meta['img_shape'][:2])} pixels of an image of "
                f"{resized}: merge maps need one that only resizes and pads, without cropping"
            )
        if meta.get("flip"):
            raise ValueError("merge maps need a test pipeline that does not flip the image")
        return cls((height, width), resized)

    def enlarge(
        self, tokens: NDArray, stride: int, scale: int = 1, box: Box | None = None
    ) -> NDArray:
        """Carry a map of tokens over to the pixels of the image.

        Token (i, j) stands for the pixels from (i, j) * stride on of the network's input,
        as it does for detectors' RoIs and segmentors' upsampling. A pixel gets the value of
        the token that its centre falls into; tokens of the padding fall away.

        Args:
            tokens: ``(H, W)``.
            stride: pixels of the network's input per token side.
            scale: how many times larger than the image the result is.
            box: the part of the image that is wanted; None: all.

        Returns:
            ``(height * scale, width * scale)`` of the image or of the box.
        """
        y0, x0, y1, x1 = box or (0, 0, *self.image)
        # In whole numbers: a centre that lies on a token's edge must not fall to either side.
        axes = [
            (2 * np.arange(start * scale, stop * scale, dtype=np.int64) + 1)
            * seen
            // (2 * size * scale * stride)
            for start, stop, size, seen in zip(
                (y0, x0), (y1, x1), self.image, self.resized, strict=True
            )
        ]
        return tokens[np.ix_(*axes)]


@dataclass
class BlockGroups:
    """The groups of one merging block for one image.

    Attributes:
        name: the block's place in the model, e.g. ``backbone.stages.2.blocks.1``.
        groups: number of the merged token that each token belongs to ``(H, W)``; on a
            grid the one that it gives most of its way back to.
        stride: pixels of the network's input per token side.
    """

    name: str
    groups: NDArray[np.int64]
    stride: int

    @property
    def kept(self) -> tuple[int, int]:
        """Merged tokens that stand for some token, and all tokens."""
        return len(np.unique(self.groups)), self.groups.size


def merge_groups_of(model: nn.Module, inputs: Tensor) -> list[BlockGroups]:
    """The groups of every merging block for one image.

    Args:
        model: a backbone, or any model that can be called on ``inputs``.
        inputs: the preprocessed image ``(1, C, H, W)``, with its padding.

    Returns:
        One entry per merging block, in order; empty where nothing merges.
    """
    with evaluating(model), torch.no_grad(), record_merges(model) as merges:
        model(inputs)
    size = (inputs.shape[2], inputs.shape[3])
    return [_block_groups(block_of(name), merge, size) for name, merge in merges]


def choose_blocks(
    blocks: Sequence[BlockGroups], positions: Sequence[int] | None = None
) -> list[BlockGroups]:
    """Some of a model's merging blocks.

    Args:
        blocks: all of them, in order; at least one.
        positions: of those wanted (-1: the last); None: an early, a middle and a late one.

    Raises:
        ValueError: if there is no such block.
    """
    last = len(blocks) - 1
    if positions is None:
        positions = sorted({0, (last + 1) // 2, last})
    if any(not -last <= k + 1 <= last + 1 for k in positions):
        raise ValueError(f"blocks must be positions from 0 to {last} among the merging blocks")
    return [blocks[k] for k in positions]


def _block_groups(name: str, merge: Merge, size: tuple[int, int]) -> BlockGroups:
    """A merge's groups; of several grids of one image (MobileViT's) those of the first."""
    return BlockGroups(name, merge.groups()[0].cpu().numpy(), token_stride(size, merge.grid))


def map_scale(block: BlockGroups, view: View) -> int:
    """How many times larger than the image its merge map is best drawn."""
    longest = max(view.image)
    wanted = max(int(np.ceil(MIN_GROUP / group_side(block, view))), -(-MIN_SIDE // longest))
    return max(1, min(wanted, MAX_SIDE // longest))


def group_side(block: BlockGroups, view: View) -> float:
    """Side of a square of an average group's size, in pixels of the image."""
    shrink = min(image / seen for image, seen in zip(view.image, view.resized, strict=True))
    kept, tokens = block.kept
    return (tokens / kept) ** 0.5 * block.stride * shrink


def outlines(labels: NDArray) -> NDArray:
    """Pixels ``(H, W)`` whose right or lower neighbour has another label."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    return edges


def mean_colours(image: Pixels, labels: NDArray) -> Pixels:
    """Give every pixel the mean colour of its label's pixels.

    Args:
        image: ``(H, W, 3)``.
        labels: ``(H, W)`` integers >= 0.
    """
    flat = labels.ravel()
    counts = np.maximum(np.bincount(flat), 1)
    channels = [np.bincount(flat, weights=c.ravel()) / counts for c in np.moveaxis(image, -1, 0)]
    means = np.stack(channels, -1).round().astype(np.uint8)  # (labels, 3)
    return means[labels]


def draw_merge_map(
    image: Pixels,
    block: BlockGroups,
    view: View,
    scale: int | None = None,
    borders: bool = True,
    box: Box | None = None,
) -> Pixels:
    """The image with every group in the mean colour of its pixels, and thin borders.

    Args:
        image: ``(H, W, 3)``, as given to the pipeline.
        block: the groups.
        view: how the image lies in the network's input.
        scale: how many times larger than the image to draw; None: :func:`map_scale`.
        borders: whether groups are outlined, one pixel of the result wide.
        box: the part of the image that is wanted; None: all.

    Returns:
        ``(height * scale, width * scale, 3)`` of the image or of the box.
    """
    scale = map_scale(block, view) if scale is None else scale
    y0, x0, y1, x1 = box or (0, 0, *view.image)
    labels = view.enlarge(block.groups, block.stride, scale, box)
    drawn = mean_colours(image[y0:y1, x0:x1].repeat(scale, 0).repeat(scale, 1), labels)
    return draw_outlines(drawn, outlines(labels)) if borders else drawn


def draw_outlines(image: Pixels, edges: NDArray) -> Pixels:
    """Mark pixels so that they stand out: darker on bright ground, brighter on dark."""
    ground = image[edges].astype(np.float32)
    bright = ground.mean(-1, keepdims=True) > 110
    drawn = image.copy()
    drawn[edges] = np.where(bright, ground * 0.55, ground * 0.55 + 255 * 0.4).astype(np.uint8)
    return drawn

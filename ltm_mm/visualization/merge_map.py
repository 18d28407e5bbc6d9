"""What the merging masks of a model did to an image: which pixels share a slot (ours).

Letters as in ``ltm_mm.ops``: n windows per image, N tokens and P slots per window. Slots
are counted through the image: slot p of window i has number ``i * P + p``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..layers import TokenMerger
from ..ops import Merge, from_windows, hat_prior

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels of the image
MIN_SLOT, MIN_SIDE = 10, 800  # pixels that a slot's and a drawn merge map's side has at least ...
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
class StageMasks:
    """The masks of one stage for one image; several merges are taken together.

    Attributes:
        name: the stage's place in the model, e.g. ``backbone.stages.2``.
        grid: tokens per column and row.
        window: tokens per window side.
        counts: slots per window side after each merge.
        stride: pixels of the network's input per token side.
        to_slots: G, columns sum to 1 ``(n, N, P)``.
        back: U, rows sum to 1 ``(n, N, P)``.
        prior: the U of an untrained mask without content, ``(n, N, P)``.
        trained: whether a mask module differs from its start.
    """

    name: str
    grid: tuple[int, int]
    window: int
    counts: tuple[int, ...]
    stride: int
    to_slots: Tensor
    back: Tensor
    prior: Tensor
    trained: bool

    def slot_map(self) -> NDArray:
        """Number of the slot that each token gives most of its way back to ``(H, W)``."""
        slots = self.back.shape[-1]
        first = torch.arange(self.back.shape[0]).unsqueeze(-1) * slots  # (n, 1)
        return self._on_grid(self.back.argmax(-1) + first)

    def departure(self) -> NDArray:
        """How far each token's mask is from the spatial prior ``(H, W)``.

        Total variation distance between the token's row of U and of the prior's U: the
        share (0..1) of the token's update that comes from other slots than it would.
        """
        return self._on_grid((self.back - self.prior).abs().sum(-1) / 2)

    def weights(self, slot: int) -> NDArray:
        """Share of each token in a merged slot, a column of G ``(H, W)``; sums to 1."""
        window, column = divmod(slot, self.to_slots.shape[-1])
        weights = torch.zeros(self.to_slots.shape[:2])
        weights[window] = self.to_slots[window, :, column]
        return self._on_grid(weights)

    def _on_grid(self, values: Tensor) -> NDArray:
        """``(n, N)`` values of the windows' tokens as ``(H, W)``, padding cut off."""
        height, width = self.grid
        rows, cols = (-(-size // self.window) * self.window for size in self.grid)
        grid = from_windows(values[None, ..., None], self.window, rows, cols)
        return grid[0, :height, :width, 0].numpy()


@dataclass
class Record:
    """One merge as it happened."""

    merger: TokenMerger
    merged: Merge
    to_slots: Tensor


@contextmanager
def record_merges(model: nn.Module) -> Iterator[dict[str, list[Record]]]:
    """Record the merges of the forward passes within.

    Args:
        model: with :class:`ltm_mm.layers.TokenMerger` modules somewhere inside.

    Yields:
        Stage -> its merges in order, filled by one forward pass. Merges that are undone
        before the next one (so that it gets tokens, not slots) count as stages of their
        own. The hooks are gone afterwards.
    """
    records: dict[str, list[Record]] = {}
    masks: dict[nn.Module, list[Tensor]] = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, TokenMerger):
                continue
            place = name.rpartition(".")[0]

            def keep_mask(mask: nn.Module, _: tuple, output: tuple[Tensor, ...]) -> None:
                masks.setdefault(mask, []).append(output[0].detach())

            def keep_merge(
                merger: nn.Module,
                _: tuple,
                merged: Merge,
                place: str = place,
            ) -> None:
                assert isinstance(merger, TokenMerger)
                to_slots = torch.cat(masks.pop(merger.mask), 1)  # one part per band of windows
                record = Record(merger, merged, to_slots)
                stage = stage_of(place)
                if not _goes_on(records.get(stage), record):
                    stage = place
                records.setdefault(stage, []).append(record)

            hooks.callback(module.mask.register_forward_hook(keep_mask).remove)
            hooks.callback(module.register_forward_hook(keep_merge).remove)
        yield records


def stage_of(place: str) -> str:
    """Name of the stage that a merging block is in.

    Args:
        place: the block's place in the model, e.g. ``stages.2.blocks.1``.

    Returns:
        What comes before its list of blocks, ``stages.2``; the list itself where nothing
        does (``blocks.3`` -> ``blocks``).
    """
    parts = place.split(".")
    while len(parts) > 1 and parts[-1].isdecimal():
        parts.pop()
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "blocks" else parts)


def _goes_on(chain: Sequence[Record] | None, record: Record) -> bool:
    """Whether a merge merges the slots of the chain's last one; True where there is none."""
    if not chain:
        return True
    last = chain[-1]
    sizes = last.merged.slots.shape[1:3], record.merged.tokens.shape[1:3]
    return record.merger.window == last.merger.slots and sizes[0] == sizes[1]


def merge_masks_of(model: nn.Module, inputs: Tensor) -> list[StageMasks]:
    """The masks of every merging stage for one image.

    Args:
        model: a backbone, or any model that can be called on ``inputs``.
        inputs: the preprocessed image ``(1, C, H, W)``, with its padding.

    Returns:
        One entry per merging stage, in order; empty where nothing merges.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), record_merges(model) as records:
            model(inputs)
    finally:
        model.train(training)
    size = (inputs.shape[2], inputs.shape[3])
    return [_compose(name, merges, size) for name, merges in records.items()]


def _compose(name: str, merges: Sequence[Record], size: tuple[int, int]) -> StageMasks:
    """Take a stage's merges together; every window of a later one is one of the first."""
    first = merges[0]
    _, height, width, _ = first.merged.tokens.shape
    # Each factor (n, N, P): G, U and the prior's U of one merge.
    to_slots, back, prior = ([] for _ in range(3))
    for record in merges:
        to_slots.append(record.to_slots[0].float().cpu())
        own = record.merged.back[0].float().cpu()
        hat = hat_prior(record.merger.window, record.merger.slots).softmax(-1).expand_as(own)
        back.append(_to_kept_slots(own, record))
        prior.append(_to_kept_slots(hat, record))
    return StageMasks(
        name=name,
        grid=(height, width),
        window=first.merger.window,
        counts=tuple(record.merger.slots for record in merges),
        stride=_stride(size, (height, width)),
        to_slots=_chain(to_slots),
        back=_chain(back),
        prior=_chain(prior),
        trained=any(_trained(record.merger) for record in merges),
    )


def _chain(factors: Sequence[Tensor]) -> Tensor:
    """Product of the factors ``(n, N, P_1) (n, P_1, P_2) ...``."""
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product


def _to_kept_slots(back: Tensor, record: Record) -> Tensor:
    """Send what leads back from slots left out beyond the edge to the ones that stand for them."""
    _, height, width, _ = record.merged.tokens.shape
    w, s = record.merger.window, record.merger.slots
    rows, cols = (
        torch.arange(-(-size // w) * s).clamp(max=-(-size * s // w) - 1).unflatten(0, (-1, s)) % s
        for size in (height, width)
    )  # (windows, s): the kept slot of the same window
    kept = rows[:, None, :, None] * s + cols[None, :, None, :]  # (rows, cols, s, s)
    kept = kept.flatten(2).flatten(0, 1).unsqueeze(1).expand_as(back)  # (n, N, P)
    return torch.zeros_like(back).scatter_add(-1, kept, back)


def _stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Pixels per token side; powers of two first, which are what the backbones here have."""
    powers = [2**k for k in range(16)]
    for stride in (*powers, *range(1, max(size) + 1)):
        if all(-(-s // stride) == g for s, g in zip(size, grid, strict=True)):
            return stride
    raise ValueError(f"a grid of {grid} tokens has no stride on an input of {size} pixels")


def _trained(merger: TokenMerger) -> bool:
    """Whether the mask module differs from its start in what decides its masks."""
    mask = merger.mask
    same = not mask.prior_offset.any()
    if mask.steps:
        same = same and not mask.log_sharpness
    return not same


def map_scale(stage: StageMasks, view: View) -> int:
    """How many times larger than the image its merge map is best drawn."""
    longest = max(view.image)
    wanted = max(int(np.ceil(MIN_SLOT / slot_side(stage, view))), -(-MIN_SIDE // longest))
    return max(1, min(wanted, MAX_SIDE // longest))


def slot_side(stage: StageMasks, view: View) -> float:
    """Side of an average slot, in pixels of the image."""
    shrink = min(image / seen for image, seen in zip(view.image, view.resized, strict=True))
    return stage.window * stage.stride / stage.counts[-1] * shrink


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
    stage: StageMasks,
    view: View,
    scale: int | None = None,
    borders: bool = True,
    box: Box | None = None,
) -> Pixels:
    """The image with every slot in the mean colour of its pixels, and thin borders.

    Args:
        image: ``(H, W, 3)``, as given to the pipeline.
        stage: the masks.
        view: how the image lies in the network's input.
        scale: how many times larger than the image to draw; None: :func:`map_scale`.
        borders: whether slots are outlined, one pixel of the result wide.
        box: the part of the image that is wanted; None: all.

    Returns:
        ``(height * scale, width * scale, 3)`` of the image or of the box.
    """
    scale = map_scale(stage, view) if scale is None else scale
    y0, x0, y1, x1 = box or (0, 0, *view.image)
    labels = view.enlarge(stage.slot_map(), stage.stride, scale, box)
    drawn = mean_colours(image[y0:y1, x0:x1].repeat(scale, 0).repeat(scale, 1), labels)
    return draw_outlines(drawn, outlines(labels)) if borders else drawn


def draw_outlines(image: Pixels, edges: NDArray) -> Pixels:
    """Mark pixels so that they stand out: darker on bright ground, brighter on dark."""
    ground = image[edges].astype(np.float32)
    bright = ground.mean(-1, keepdims=True) > 110
    drawn = image.copy()
    drawn[edges] = np.where(bright, ground * 0.55, ground * 0.55 + 255 * 0.4).astype(np.uint8)
    return drawn

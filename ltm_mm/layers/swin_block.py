"""A Swin block, on all tokens or on merged tokens, whoever built its parts.

Source: Swin (Liu et al., ICCV 2021) and Swin V2 (Liu et al., CVPR 2022); merging inside the
block's own windows is ours, see :mod:`ltm_mm.merging`.

Letters: B images, H x W grid, n windows per image, N tokens and P merged tokens per window.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels import WindowChunks, add_by_rows, can_run_in_chunks
from ..kernels.windows import Chunk
from ..merging import Groups, WindowMask, WindowMerge, has_listeners, notify_merge, unmerge_update
from ..ops import ShiftedWindows, is_empty
from .observe import WindowUnmerger, hooks_see_all_tokens
from .window_attention import WindowContext

MERGED_CHUNK = 2**20  # values of merged tokens that a block works on at a time

OnTokens = Callable[[Tensor], Tensor]


@dataclass
class SwinView:
    """What a Swin block is made of, read from the block in every forward pass.

    Attributes:
        block: the block.
        windows: how its grid is cut.
        norm1, norm2: before attention and MLP; after them where ``post_norm``.
        attention: gets windows ``(B * n, N or P, C)`` and a :class:`WindowContext`.
        drop_path1, drop_path2: what the updates of attention and MLP go through.
        mlp: the MLP.
        hidden: channels of its hidden layer.
        merge: the mask module; None: nothing is merged.
        post_norm: whether updates are normalised, as in Swin V2, not what they are made from.
        layouts: how the plain block's modules get tokens, see :class:`.observe.WindowUnmerger`.
    """

    block: nn.Module
    windows: ShiftedWindows
    norm1: OnTokens
    attention: Callable[[Tensor, WindowContext], Tensor]
    drop_path1: OnTokens
    norm2: OnTokens
    mlp: OnTokens
    drop_path2: OnTokens
    hidden: int
    merge: WindowMask | None
    post_norm: bool = False
    layouts: Mapping[str, str] = field(default_factory=lambda: {"": "rows"})

    def run(self, x: Tensor) -> Tensor:
        """The block on a grid ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        if is_empty(x):
            return x
        merge, windows = self.merge, self.windows
        group = None if merge is None else merge.for_windows(windows.size, windows.shift)
        return self._plain(x) if merge is None or group is None else self._merged(x, merge, group)

    def _merged(self, x: Tensor, merge: WindowMask, group: WindowMask) -> Tensor:
        """Every window: merge, run the block on merged tokens, lead its update back."""
        in_parts = can_run_in_chunks(self.block)
        at_once = has_listeners() or not in_parts
        values = MERGED_CHUNK * self.windows.size**2 // group.keep
        chunks = WindowChunks(self.windows, x, values=values, at_once=at_once)
        for chunk in chunks:
            mask = group(chunk.tokens, chunk.mass, chunk.shift_index)
            merged = mask.merge_own(chunk.tokens)  # (B, n, P, C)
            if has_listeners():
                notify_merge(merge, WindowMerge(x, merged.flatten(1, 2), mask, self.windows))
            unmerger = WindowUnmerger(mask, self.windows, (x.shape[1], x.shape[2]), self.layouts)
            with nullcontext() if in_parts else hooks_see_all_tokens(self.block, unmerger):
                updated = self._on_merged(merged, chunk, mask)
            chunks.put(chunk, unmerge_update(chunk.tokens, mask, merged, updated, merge.detail))
        return chunks.grid

    def _on_merged(self, x: Tensor, chunk: Chunk, mask: Groups) -> Tensor:
        """The block on merged tokens ``(B, n, P, C)``."""
        normed = x if self.post_norm else self.norm1(x)
        if mask.mass is not None and not self.post_norm:
            # Padding is zero after the norm, as in the reference.
            normed = normed * (mask.masses() > 0).unsqueeze(-1).to(normed.dtype)
        update = self._attend(normed, chunk, mask)
        update = self.norm1(update) if self.post_norm else update
        return self._add_mlp(x + self.drop_path1(update))

    def _plain(self, x: Tensor) -> Tensor:
        """The block on all tokens."""
        at_once = not can_run_in_chunks(
            self.block
        )  # in parts only where no hook would see the parts
        before = None if self.post_norm else self.norm1
        chunks = WindowChunks(self.windows, x, before, at_once=at_once)
        for chunk in chunks:
            chunks.put(chunk, self._attend(chunk.tokens, chunk, None))
        update = self.drop_path1(self.norm1(chunks.grid) if self.post_norm else chunks.grid)
        if torch.is_grad_enabled() or at_once or update.dtype != x.dtype:
            x = x + update
        else:  # the grid is the block's own, and no hook has seen it
            x = update.add_(x)
        if self.block.training or at_once:  # stochastic depth drops whole images
            return self._add_mlp(x)
        return add_by_rows(x, self._mlp_update, self.hidden)

    def _attend(self, x: Tensor, chunk: Chunk, mask: Groups | None) -> Tensor:
        """Attention among the tokens of every window ``(B, n, N or P, C)``."""
        shape = (x.shape[0], x.shape[1])
        context = WindowContext(self.windows, shape, chunk.shift_index, mask)
        out = self.attention(x.flatten(0, 1), context)
        return (out[0] if isinstance(out, tuple) else out).view(x.shape)

    def _add_mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self._mlp_update(x))

    def _mlp_update(self, x: Tensor) -> Tensor:
        if self.post_norm:
            return self.norm2(self.mlp(x))
        return self.mlp(self.norm2(x))

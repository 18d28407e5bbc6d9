"""A Swin block on merged tokens, whoever built its parts (ours).

Source: Swin (Liu et al., ICCV 2021) and Swin V2 (Liu et al., CVPR 2022); merging inside the
block's own windows is ours, see :mod:`ltm_mm.merging`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import add_by_rows, calm, map_windows
from ..merging import Mask, WindowMerge, merged_block, recording, tell
from ..ops import ShiftedWindows

MAX_LOG_SCALE = math.log(100.0)
MERGED_CHUNK = 2**20  # values of merged tokens that a block works on at a time

OnTokens = Callable[[Tensor], Tensor]
# Windows (B, n, N, C) or their merged tokens, which shift mask each takes (n,), and the mask that
# merged them.
Attend = Callable[[Tensor, Tensor | None, Mask | None], Tensor]


@dataclass
class SwinView:
    """What a Swin block is made of. It is read from the block anew in every forward pass.

    Attributes:
        block: the block.
        windows: how its grid is cut.
        norm1, norm2: before attention and MLP; after them where ``post_norm``.
        attend: attention within windows.
        drop_path1, drop_path2: what the updates of attention and MLP go through.
        feed_forward: the MLP.
        hidden: channels of its hidden layer.
        merge: the mask module; None: nothing is merged.
        post_norm: whether updates are normalised, as in Swin V2, in place of what they are
            made from.
    """

    block: nn.Module
    windows: ShiftedWindows
    norm1: OnTokens
    attend: Attend
    drop_path1: OnTokens
    norm2: OnTokens
    feed_forward: OnTokens
    drop_path2: OnTokens
    hidden: int
    merge: nn.Module | None
    post_norm: bool = False

    def run(self, x: Tensor) -> Tensor:
        """The block on a grid ``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return self._plain(x) if self.merge is None else self._merged(x)

    def _plain(self, x: Tensor) -> Tensor:
        at_once = not calm(self.block)  # in parts only where no hook would see the parts
        before = None if self.post_norm else self.norm1
        work = lambda own, shift_index, _: self.attend(own, shift_index, None)  # noqa: E731
        attended = map_windows(self.windows, x, work, before, at_once=at_once)
        x = x + self.drop_path1(self.norm1(attended) if self.post_norm else attended)
        # Stochastic depth drops whole images.
        if self.block.training or at_once:
            return self._second(x)
        return add_by_rows(x, self._update, self.hidden)

    def _second(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self._update(x))

    def _update(self, x: Tensor) -> Tensor:
        if self.post_norm:
            return self.norm2(self.feed_forward(x))
        return self.feed_forward(self.norm2(x))

    def _merged(self, x: Tensor) -> Tensor:
        assert self.merge is not None
        at_once = recording() or not calm(self.block)
        chunk: int = MERGED_CHUNK * self.windows.size**2 // self.merge.keep  # type: ignore[operator, assignment]
        work = lambda *own: self._in_windows(x, *own)  # noqa: E731
        return map_windows(self.windows, x, work, chunk=chunk, at_once=at_once)

    def _in_windows(
        self, x: Tensor, tokens: Tensor, shift_index: Tensor | None, mass: Tensor | None
    ) -> Tensor:
        assert self.merge is not None
        mask = self.merge(tokens, mass, shift_index)

        def block(merged: Tensor) -> Tensor:
            if recording():
                flat = merged.flatten(1, 2)
                tell(self.merge, WindowMerge(x, flat, mask, self.windows))  # type: ignore[arg-type]
            return self._on_groups(merged, mask, shift_index)

        return merged_block(tokens, mask, block)

    def _on_groups(self, x: Tensor, mask: Mask, shift_index: Tensor | None) -> Tensor:
        """The block on merged tokens ``(B, n, P, C)``."""
        own = x if self.post_norm else self.norm1(x)
        if mask.mass is not None and not self.post_norm:
            # Padding is zero after the norm, as in the reference.
            own = own * (mask.masses() > 0).unsqueeze(-1).to(own.dtype)
        update = self.attend(own, shift_index, mask)
        return self._second(x + self.drop_path1(self.norm1(update) if self.post_norm else update))


def cosine(qkv: Tensor, heads: int, log_scale: Tensor) -> Tensor:
    """Queries, keys and values ``(..., 3C)`` whose products are Swin V2's scaled cosines.

    Args:
        qkv: as projected.
        heads: attention heads.
        log_scale: log of each head's scale ``(heads, 1, 1)``.
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)  # (..., heads, d)
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp().view(-1, 1)
    q = F.normalize(q, dim=-1) * scale.to(q.dtype)
    return torch.stack((q, F.normalize(k, dim=-1), v), -3).flatten(-3)

"""Another library's window attention, run as ours (ours)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..kernels import run_linear
from ..merging import Mask
from ..ops import ShiftedWindows, pair_places, relative_position_index, shift_masks, window_regions
from .window_attention import WindowAttention


@dataclass(frozen=True)
class Where:
    """Which windows tokens lie in; goes where a library's attention takes its mask.

    Attributes:
        windows: how the grid was cut.
        shape: of the tokens before windows were counted through: ``(B, n)``.
        shift_index: see :func:`ltm_mm.ops.shift_indices`; None: not shifted.
        mask: what merged them; None: not merged.
    """

    windows: ShiftedWindows
    shape: tuple[int, int]
    shift_index: Tensor | None
    mask: Mask | None


@dataclass(frozen=True)
class WindowTables:
    """What window attention looks up, which follows from window and shift alone."""

    relative_position_index: Tensor
    shift_masks: Tensor | None
    places: Tensor
    region_places: Tensor | None


@dataclass
class WindowAttentionView:
    """Another library's window attention as :class:`WindowAttention`, parameters and all.

    Attributes:
        qkv: ``(..., C)`` -> queries, keys and values ``(..., 3C)``.
        proj: ``(..., C)`` -> ``(..., C)``.
        proj_drop: dropout of the output.
        relative_position_bias_table: ``((2w - 1)**2, heads)``.
        num_heads: attention heads.
        scale: logit scale.
        attn_drop: dropout of attention weights, 0..1.
        training: whether that applies.
        weigh: from logits to weights, where someone watches the module that does it.
    """

    qkv: Callable[[Tensor], Tensor]
    proj: Callable[[Tensor], Tensor]
    proj_drop: Callable[[Tensor], Tensor]
    relative_position_bias_table: Tensor
    num_heads: int
    scale: float
    attn_drop: float
    training: bool
    weigh: Callable[[Tensor], Tensor] | None = None

    position_bias = WindowAttention.position_bias
    group_bias = WindowAttention.group_bias

    def run(self, x: Tensor, where: Where) -> Tensor:
        """Attend within windows ``(B * n, N, C)`` or among their merged tokens.

        Raises:
            ValueError: if the table of position biases is of another window.
        """
        tables = window_tables(where.windows.size, where.windows.shift, x.device)
        self.relative_position_index, self.places = tables.relative_position_index, tables.places
        self.shift_masks, self.region_places = tables.shift_masks, tables.region_places
        if len(self.relative_position_bias_table) != (2 * where.windows.size - 1) ** 2:
            raise ValueError(
                f"{len(self.relative_position_bias_table)} position biases do not fit windows of "
                f"{where.windows.size} x {where.windows.size} tokens"
            )
        x = x.unflatten(0, where.shape)
        if self.weigh is None:
            return WindowAttention.forward(self, x, where.shift_index, where.mask).flatten(0, 1)  # type: ignore[arg-type]
        return self._watched(x, where).flatten(0, 1)

    def _watched(self, x: Tensor, where: Where) -> Tensor:
        assert self.weigh is not None
        b, n, count, _ = x.shape
        bias = self.position_bias(where.shift_index)  # type: ignore[misc]
        if where.mask is not None:
            bias = self.group_bias(where.mask, where.shift_index)  # type: ignore[misc]
        elif where.shift_index is not None:
            bias = bias.repeat(b, 1, 1, 1)
        qkv = self.qkv(x).view(b * n, count, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B * n, h, N, d)
        out = self.weigh(q @ k.mT * self.scale + bias.to(q.dtype)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(b, n, count, -1)))


_tables: dict[tuple, WindowTables] = {}


def window_tables(window: int, shift: int, device: torch.device) -> WindowTables:
    """The tables of a window's size and shift; made once for each device.

    Args:
        window: tokens per window side.
        shift: tokens that windows are shifted by.
        device: where the tables live.
    """
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return _window_tables(window, shift, device)  # traced or fake: not to be kept
    key = (window, shift, device)
    if key not in _tables:
        with torch.inference_mode(False):
            _tables[key] = _window_tables(window, shift, device)
    return _tables[key]


def _window_tables(window: int, shift: int, device: torch.device) -> WindowTables:
    places = pair_places(window)
    masks = regions = None
    if shift:
        masks = shift_masks(window, shift).to(device)
        # Regions lie so far apart that no difference across them is in the table.
        far = (2 * window) ** 2 * window_regions(window, shift).int()
        regions = (places + far).to(device)
    index = relative_position_index(window)
    return WindowTables(index.to(device), masks, places.to(device), regions)


def joined(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """Layers whose outputs for one input stand side by side."""
    return lambda x: torch.cat([run_linear(layer, x) for layer in layers], -1)

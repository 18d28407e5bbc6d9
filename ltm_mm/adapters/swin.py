"""What the Swin blocks of all libraries have in common on merged tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import hooked, is_unmodified, linear, run_linear
from ..layers import SwinView, WindowContext, attend, scaled_cosine
from ..layers.swap_class import SwappedClass, refuse_tracing, swap_class
from ..merging import MergeScope, MergingBlock, WindowMask, build_mask
from ..merging.masks import kept_tokens
from ..ops import ShiftedWindows


class MergedSwin(SwappedClass, MergingBlock, MergeScope):
    """A Swin block on merged tokens; a subclass for each library says how to read its blocks.

    Attributes:
        SWAPPED: path of a module in a block whose class is swapped, too -> for what.
        POST_NORM: see :class:`ltm_mm.layers.SwinView`.
    """

    EXTRAS = ("merge",)
    SWAPPED: Mapping[str, type[SwappedClass]] = {}
    POST_NORM = False
    merge: WindowMask | None

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """Whether a module is a block of this library."""
        raise NotImplementedError

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block that is not swapped."""
        raise NotImplementedError

    @staticmethod
    def norms(block: Any) -> tuple[Any, Any]:
        """The norms of a block's attention and MLP."""
        return block.norm1, block.norm2

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """Modules in a block whose classes are swapped, too, and what for."""
        return {block.get_submodule(path): mixin for path, mixin in cls.SWAPPED.items()}

    @staticmethod
    def as_map(block: Any, args: tuple, out: Tensor) -> Tensor:
        """A block's output, of a call with these arguments, as ``(B, C, H, W)``."""
        grid = out if out.ndim == 4 else out.unflatten(1, tuple(args[1]))
        return grid.permute(0, 3, 1, 2)

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        raise NotImplementedError

    def run(self, x: Tensor, windows: ShiftedWindows) -> Tensor:
        """The block on a grid ``(B, H, W, C)``."""
        refuse_tracing(x)
        return self.view(windows).run(x)


def wrap_block(block: Any, adapter: type[MergedSwin], keep: int) -> None:
    """Swap a block's class, so that it keeps ``keep`` tokens of each window."""
    windows = adapter.block_windows(block)
    parts = adapter.parts(block)
    weight = adapter.norms(block)[0].weight
    merge = None
    if keep < windows.size**2:
        merge = build_planned_mask(windows, keep)
        merge.to(weight.device, weight.dtype).train(block.training)
    swap_class(block, adapter, merge=merge)
    for module, mixin in parts.items():
        swap_class(module, mixin)


def build_planned_mask(windows: ShiftedWindows, keep: int) -> WindowMask:
    """A mask module of what a plan keeps of these windows, for others as well.

    Args:
        windows: the block's at present; perhaps so small that nothing merges in them.
        keep: tokens that the plan keeps of them.
    """
    size, shift = windows.size, windows.shift
    kept = kept_tokens(keep, size, size, shift)
    if kept >= size**2:  # none of its parts could be left out
        kept, shift = keep, 0
    made = build_mask(size, kept, shift)
    made.plan_entry = (keep, size)
    return made


def as_grid(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens ``(B, H * W, C)`` as a grid ``(B, H, W, C)``.

    Not by ``unflatten``: the tracing ONNX exporter takes its result's batch for a constant.
    """
    return x.view(x.shape[0], size[0], size[1], x.shape[2])


def square(window: Any) -> int:
    """Tokens per window side.

    Raises:
        ValueError: if windows are not square.
    """
    rows, cols = (window, window) if isinstance(window, int) else window
    if rows != cols:
        raise ValueError(f"only square windows can be merged, the model's are {rows} x {cols}")
    return int(rows)


def hidden(layer: nn.Module) -> int:
    """Channels that an MLP's first layer makes; about so many where something took its place."""
    return getattr(layer, "out_features", 1024)


class QkvAttention(SwappedClass):
    """Window attention with the attributes of the authors' own, as most libraries have it."""

    def forward(self, x: Tensor, mask: object = None) -> Tensor:
        """Windows ``(B * n, N, C)`` and their context; with anything else as before."""
        if not isinstance(mask, WindowContext):
            return super().forward(x, mask)
        return attend(
            x,
            mask,
            qkv=self.make_qkv,
            proj=lambda x: self.proj_drop(run_linear(self.proj, x)),
            bias_table=self.bias_table(),
            num_heads=self.num_heads,
            scale=self.logit_factor(),
            dropout=self.attn_drop.p if self.training else 0.0,
            weigh=observed_softmax(self.softmax, self.attn_drop),
        )

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values ``(..., 3C)``."""
        return run_linear(self.qkv, x)

    def bias_table(self) -> Tensor:
        """``((2w - 1)**2, heads)``."""
        return self.relative_position_bias_table

    def logit_factor(self) -> float:
        """Scale of the logits."""
        return self.scale


class CosineAttention(QkvAttention):
    """Swin V2's window attention, with the attributes of the authors' own."""

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values, whose products are scaled cosines."""
        bias = None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        return scaled_cosine(run_biased(self.qkv, x, bias), self.num_heads, self.logit_scale)

    def bias_table(self) -> Tensor:
        """Made by an MLP from positions."""
        return continuous_bias(self.cpb_mlp, self.relative_coords_table)

    def logit_factor(self) -> float:
        """1: the scale is in the queries."""
        return 1.0


def run_biased(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer with a bias that is not its own."""
    if is_unmodified(layer):
        return linear(x, layer.weight, bias)
    return layer(x) if bias is None else layer(x) + bias


def continuous_bias(mlp: nn.Module, coords: Tensor) -> Tensor:
    """Swin V2's position biases ``((2w - 1)**2, heads)``, which an MLP makes of positions."""
    return 16 * mlp(coords).flatten(0, -2).sigmoid()


def observed_softmax(softmax: nn.Module, dropout: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Softmax and dropout, where someone watches one of them."""
    if torch.compiler.is_compiling() or not (hooked(softmax) or hooked(dropout)):
        return None
    return lambda logits: dropout(softmax(logits))


def is_instance_of(module: nn.Module, package: str, *names: str) -> bool:
    """Whether a module is of a package's class of one of these names."""
    module_type = type(module)
    return module_type.__name__ in names and module_type.__module__.partition(".")[0] == package

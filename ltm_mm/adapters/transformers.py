"""Swin blocks of Hugging Face's transformers as ours.

Blocks are known by how they are built: Swin's of transformers 5 (``q_proj``, ``o_proj``), and
those with ``attention.self`` and ``attention.output`` (MaskFormer's, Donut's, Swin V2's). Models
that contain them (UperNet, Mask2Former, Grounding DINO, ...) need no more.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import can_run_in_chunks, hooked, run_linear, run_mlp
from ..layers import SwinView, WindowContext, attend, concat_linears, scaled_cosine
from ..layers.cpu_attention_mlp import FastMlp, children, is_identity
from ..layers.swap_class import SwappedClass
from ..ops import ShiftedWindows
from .swin import MergedSwin, as_grid, continuous_bias, hidden, square

NEW = {"attention", "layernorm_before", "layernorm_after", "mlp", "dropout", "drop_path"}
OLD = {"attention", "layernorm_before", "layernorm_after", "intermediate", "output", "drop_path"}


def of_transformers(module: nn.Module, parts: set[str]) -> bool:
    """Whether a module is a layer of transformers 5 with windows and these parts."""
    module_type = type(module)
    if module_type.__module__.partition(".")[0] != "transformers" or children(module) != parts:
        return False
    taken = inspect.signature(module_type.forward).parameters
    return hasattr(module, "shift_size") and "head_mask" not in taken


def refuse_attentions(wanted: object) -> None:
    """Raise a ValueError if attention weights are wanted."""
    if wanted:
        raise ValueError(
            "a block that merges has no attention weights of tokens: call it without "
            "output_attentions, or call ltm_mm.remove(model) first"
        )


class HFSwinLayer(MergedSwin):
    """``SwinLayer``."""

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return of_transformers(module, NEW) and hasattr(module.attention, "o_proj")

    @staticmethod
    def block_windows(block: Any) -> ShiftedWindows:
        """The windows of a block."""
        return ShiftedWindows(square(int(block.window_size)), int(block.shift_size))

    @staticmethod
    def norms(block: Any) -> tuple[Any, Any]:
        """The norms of a block's attention and MLP."""
        return block.layernorm_before, block.layernorm_after

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """Attention and MLP."""
        return {block.attention: Attention, block.mlp: Mlp}

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        **options: object,
    ) -> tuple[Tensor, None]:
        """``(B, H * W, C)``, (H, W) -> the same; attention weights cannot be had."""
        refuse_attentions(options.get("output_attentions", self.attention.config.output_attentions))
        if not always_partition:
            self.set_shift_and_window_size(input_dimensions)
        return self.on_grid(hidden_states, input_dimensions), None

    def on_grid(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, H * W, C)``, (H, W) -> ``(B, H * W, C)``."""
        return self.run(as_grid(x, size), HFSwinLayer.block_windows(self)).flatten(1, 2)

    def attend_and_drop(self, x: Tensor, context: WindowContext) -> Tensor:
        """Attention and the dropout after it, on windows ``(B * n, N, C)``."""
        return self.dropout(self.attention(x, context)[0])

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.layernorm_before,
            self.attend_and_drop,
            self.drop_path,
            self.layernorm_after,
            self.mlp,
            self.dropout,
            hidden(self.mlp.fc1),
            self.merge,
        )


class HFOldSwinLayer(HFSwinLayer):
    """``MaskFormerSwinLayer`` and ``DonutSwinLayer``."""

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return of_transformers(module, OLD) and hasattr(
            module.attention.self, "relative_position_bias_table"
        )

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """What attends."""
        return {block.attention.self: SelfAttention}

    def forward(  # type: ignore[override]  # as the classes of these models do
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        output_attentions: bool | None = False,
        always_partition: bool | None = False,
    ) -> tuple[Tensor]:
        """``(B, H * W, C)``, (H, W) -> the same; attention weights cannot be had."""
        refuse_attentions(output_attentions)
        # Donut's fits its windows to the map; MaskFormer's and Swin V2's do not.
        if hasattr(self, "set_shift_and_window_size") and not always_partition:
            self.set_shift_and_window_size(input_dimensions)
        return (self.on_grid(hidden_states, input_dimensions),)

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return SwinView(
            self,
            windows,
            self.layernorm_before,
            self.attention,
            self.drop_path,
            self.layernorm_after,
            self.feed_forward,
            nn.Identity(),
            hidden(self.intermediate.dense),
            self.merge,
        )

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP, which lies in two modules."""
        first, last = self.intermediate, self.output
        watched = (
            hooked(first)
            or hooked(last)
            or not (can_run_in_chunks(first) and can_run_in_chunks(last))
        )
        if watched or not is_identity(last.dropout):
            return last(first(x))
        return run_mlp(first.dense, first.intermediate_act_fn, last.dense, x)


class HFSwinV2Layer(HFOldSwinLayer):
    """``Swinv2Layer``."""

    @staticmethod
    def matches(module: Any) -> bool:
        """Whether it is one."""
        return of_transformers(module, OLD) and hasattr(module.attention.self, "logit_scale")

    @classmethod
    def parts(cls, block: Any) -> dict[nn.Module, type[SwappedClass]]:
        """What attends."""
        return {block.attention.self: SelfAttentionV2}

    def view(self, windows: ShiftedWindows) -> SwinView:
        """What the block is made of now."""
        return replace(super().view(windows), drop_path2=self.drop_path, post_norm=True)


class Attention(SwappedClass):
    """``SwinAttention`` of transformers 5 for windows that are cut already."""

    def forward(
        self, hidden_states: Tensor, attention_mask: object = None, **options: object
    ) -> tuple[Tensor, Tensor | None]:
        """Windows ``(B * n, N, C)`` and their context; with anything else as before."""
        if not isinstance(attention_mask, WindowContext):
            return super().forward(hidden_states, attention_mask, **options)
        out = attend(
            hidden_states,
            attention_mask,
            qkv=concat_linears(self.q_proj, self.k_proj, self.v_proj),
            proj=lambda x: run_linear(self.o_proj, x),
            bias_table=self.relative_position_bias.relative_position_bias_table,
            num_heads=self.num_attention_heads,
            scale=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return out, None


class SelfAttention(SwappedClass):
    """``attention.self`` for windows that are cut already; ``attention.output`` projects."""

    def forward(self, hidden_states: Tensor, *args: object, **options: object) -> tuple:
        """Windows ``(B * n, N, C)`` and their context; with anything else as before."""
        context = args[0] if args else options.get("attention_mask")
        if not isinstance(context, WindowContext):
            return super().forward(hidden_states, *args, **options)
        out = attend(
            hidden_states,
            context,
            qkv=self.make_qkv,
            proj=nn.Identity(),
            bias_table=self.bias_table(),
            num_heads=self.num_attention_heads,
            scale=self.logit_factor(),
            dropout=self.dropout.p if self.training else 0.0,
            weigh=self.observed_softmax(),
        )
        return (out,)

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values ``(..., 3C)``."""
        return concat_linears(self.query, self.key, self.value)(x)

    def bias_table(self) -> Tensor:
        """``((2w - 1)**2, heads)``."""
        return self.relative_position_bias_table

    def logit_factor(self) -> float:
        """Scale of the logits."""
        return self.attention_head_size**-0.5

    def observed_softmax(self) -> Callable[[Tensor], Tensor] | None:
        """Softmax and dropout, where a hook observes the latter."""
        watched = not torch.compiler.is_compiling() and hooked(self.dropout)
        return (lambda logits: self.dropout(logits.softmax(-1))) if watched else None


class SelfAttentionV2(SelfAttention):
    """The same of Swin V2."""

    def make_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values, whose products are scaled cosines."""
        qkv = super().make_qkv(x)
        return scaled_cosine(qkv, self.num_attention_heads, self.logit_scale)

    def bias_table(self) -> Tensor:
        """Made by an MLP from positions."""
        return continuous_bias(self.continuous_position_bias_mlp, self.relative_coords_table)

    def logit_factor(self) -> float:
        """1: the scale is in the queries."""
        return 1.0


class Mlp(FastMlp):
    """``SwinMLP``."""

    LAYERS = ("fc1", "activation_fn", "fc2")
    IDENTITIES = ()

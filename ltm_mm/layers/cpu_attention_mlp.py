"""Attention and MLP of plain transformer blocks on the fast path of ``kernels`` (ours).

A module's class is swapped, see :mod:`.swap_class`: it computes what it computed. What is built
otherwise (gated attention, SwiGLU, ...) stays as it is.
"""

from torch import Tensor, nn

from ..kernels import can_run_in_chunks, run_linear, run_mlp
from ..ops import fused_attention
from .swap_class import SwappedClass, swap_class


class FastAttention(SwappedClass):
    """timm's ``Attention`` with its linear layers on the fast path."""

    CHILDREN = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"})

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        """Attend among all tokens ``(B, N, C)``; ``attn_mask`` is added to the logits."""
        if any(options.values()) or not can_run_in_chunks(self):
            return super().forward(x, attn_mask=attn_mask, **options)
        b, n, _ = x.shape
        qkv = run_linear(self.qkv, x).reshape(b, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.training else 0.0
        x = self.norm(fused_attention(q, k, v, attn_mask, self.scale, dropout))
        return self.proj_drop(run_linear(self.proj, x))


class FastMlp(SwappedClass):
    """An MLP on the fast path, whatever its library calls its layers."""

    # First layer, activation, second layer; dropouts and what else does nothing.
    LAYERS: tuple[str, str, str] = ("fc1", "act", "fc2")
    IDENTITIES: tuple[str, ...] = ("drop",)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        if not can_run_in_chunks(self) or not all(
            map(is_identity, map(self.get_submodule, self.IDENTITIES))
        ):
            return super().forward(x)
        first, act, second = map(self.get_submodule, self.LAYERS)
        return run_mlp(first, act, second, x)


class FastTimmMlp(FastMlp):
    """timm's ``Mlp``."""

    IDENTITIES = ("drop1", "norm", "drop2")


def is_identity(module: nn.Module) -> bool:
    """Whether a module gives back what it gets."""
    if isinstance(module, nn.Dropout):
        return not (module.training and module.p)
    return type(module) is nn.Identity


def children(module: nn.Module) -> set[str]:
    """Names of a module's children, without what merging has added."""
    return {name for name, _ in module.named_children() if name != "merge"}


def fast_attention(attention: nn.Module) -> nn.Module:
    """Put timm's attention on the fast path, in place, where that computes the same."""
    if type(attention).__name__ == "Attention" and children(attention) == FastAttention.CHILDREN:
        swap_class(attention, FastAttention)
    return attention


def fast_mlp(mlp: nn.Module) -> nn.Module:
    """Put timm's MLP on the fast path, in place, where that computes the same."""
    plain = children(mlp) == {*FastTimmMlp.LAYERS, *FastTimmMlp.IDENTITIES}
    plain = plain and isinstance(mlp.norm, nn.Identity) and not isinstance(mlp.fc1, nn.Conv2d)
    if plain and type(mlp).__name__ == "Mlp":
        swap_class(mlp, FastTimmMlp)
    return mlp

"""Attention and MLP of timm's plain transformer block on the fast path of ``ops`` (ours).

Both share the given module's layers under its names and compute what it computes; what
is built otherwise (gated attention, SwiGLU, ...) stays as it is.
"""

from torch import Tensor, nn

from ..ops import fused_attention
from .linear import run_linear, run_mlp


class FastAttention(nn.Module):
    """timm's ``Attention`` with its linear layers on the fast path.

    Args:
        attention: the module whose layers it shares; see :func:`fast_attention`.
    """

    num_heads: int
    scale: float
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale  # type: ignore[assignment]
        for name, layer in attention.named_children():
            setattr(self, name, layer)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend among all tokens ``(B, N, C)``; ``attn_mask`` is added to the logits."""
        b, n, _ = x.shape
        qkv = run_linear(self.qkv, x).reshape(b, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.training else 0.0
        x = self.norm(fused_attention(q, k, v, attn_mask, self.scale, dropout))
        return self.proj_drop(run_linear(self.proj, x))


class FastMlp(nn.Module):
    """timm's ``Mlp`` on the fast path.

    Args:
        mlp: the module whose layers it shares; see :func:`fast_mlp`.
    """

    fc1: nn.Module
    act: nn.Module
    drop1: nn.Dropout
    fc2: nn.Module
    drop2: nn.Module

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        for name, layer in mlp.named_children():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``."""
        if self.training and self.drop1.p > 0:
            x = self.drop1(self.act(run_linear(self.fc1, x)))
            return self.drop2(run_linear(self.fc2, x))
        return self.drop2(run_mlp(self.fc1, self.act, self.fc2, x))


def fast_attention(attention: nn.Module) -> nn.Module:
    """The module on the fast path, itself where that does not compute the same."""
    layers = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"}
    plain = {name for name, _ in attention.named_children()} == layers
    return (
        FastAttention(attention) if plain and type(attention).__name__ == "Attention" else attention
    )


def fast_mlp(mlp: nn.Module) -> nn.Module:
    """The module on the fast path, itself where that does not compute the same."""
    layers = {"fc1", "act", "drop1", "norm", "fc2", "drop2"}
    plain = {name for name, _ in mlp.named_children()} == layers
    plain = plain and isinstance(mlp.norm, nn.Identity) and isinstance(mlp.fc1, nn.Linear)
    return FastMlp(mlp) if plain and type(mlp).__name__ == "Mlp" else mlp

"""Convolution, batch normalisation and activation in one pass on the CPU."""

import torch
from torch import Tensor, nn

from .layers import is_unmodified
from .switch import uses_onednn

# Activations that oneDNN applies on the way, by PyTorch's layer.
ACTIVATIONS = {nn.Identity: "none", nn.Hardswish: "hardswish", nn.ReLU: "relu"}


class ConvNormAct(nn.Module):
    """Runs the layers of timm's ``ConvNormAct`` under its parameter names.

    Without gradients, in eval mode and where :func:`ltm_mm.kernels.uses_onednn` says yes, the
    normalisation goes into the convolution's weights and the activation into its pass. Not
    where the weights are larger than the map: rewriting them would cost more.

    Args:
        block: has ``dropout``, ``conv``, ``norm`` and ``act``, which are shared.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    act: nn.Module
    dropout: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in ("dropout", "conv", "norm", "act"):
            self.add_module(name, getattr(block, name))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C_out, H', W')``."""
        if self._foldable(x):
            return self._folded(x)
        return self.act(self.norm(self.conv(self.dropout(x))))

    def _foldable(self, x: Tensor) -> bool:
        conv, norm = self.conv, self.norm
        return (
            not self.training
            and not torch.is_grad_enabled()
            and is_unmodified(conv, nn.Conv2d)
            and is_unmodified(norm, nn.BatchNorm2d)
            and norm.affine
            and norm.running_mean is not None
            and uses_onednn(
                x, *conv.parameters(), *norm.parameters(), norm.running_mean, norm.running_var
            )
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and type(self.act) in ACTIVATIONS
            and conv.weight[0].numel() < x[:, 0].numel()
        )

    def _folded(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            conv.weight * scale[:, None, None, None],
            norm.bias - mean * scale,
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            ACTIVATIONS[type(self.act)],
            [],
            "",
        )


def fold_convs(module: nn.Module) -> nn.Module:
    """Put :class:`ConvNormAct` in the place of every one of timm's below, in place."""
    for name, child in module.named_children():
        if type(child).__name__ == "ConvNormAct" and not isinstance(child, ConvNormAct):
            setattr(module, name, ConvNormAct(child))
        else:
            fold_convs(child)
    return module

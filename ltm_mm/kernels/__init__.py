"""What makes plain layers and windows fast on a CPU; one switch turns all of it off."""

from .attention import window_attention
from .conv import ConvNormAct, fold_convs
from .layers import can_run_in_chunks, hooked, is_unmodified, run_linear, run_mlp
from .linear import CHUNK, add_by_rows, linear
from .mlp import mlp
from .norm import norm_to_map
from .switch import use_kernels, uses_onednn
from .windows import WindowChunks

__all__ = [
    "CHUNK",
    "ConvNormAct",
    "WindowChunks",
    "add_by_rows",
    "can_run_in_chunks",
    "fold_convs",
    "hooked",
    "is_unmodified",
    "linear",
    "mlp",
    "norm_to_map",
    "run_linear",
    "run_mlp",
    "use_kernels",
    "uses_onednn",
    "window_attention",
]

"""A tiny Swin's sizes, and random weights."""

import torch

# Every stage of a 128 x 128 image is larger than the window, where timm and mmdet agree.
TINY = {"embed_dims": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "strides": (4, 2, 2),
            "out_indices": (0, 1, 2), "window_size": 4}  # fmt: skip


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights and running statistics, so that no two tensors can be exchanged."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            shift = 0.25 if tensor.ndim > 1 else 0  # norms and variances stay positive
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.05 - shift)
    model.eval()  # mmdet's Swin returns None here
    return model

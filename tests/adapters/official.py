"""The structure of the authors' Swin code, written anew for the tests: names, order, signatures.

After the facts of microsoft/Swin-Transformer and its detection fork (the backbone of Mask2Former).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltm_mm.ops import from_windows, pad_to_windows, relative_position_index, to_windows


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class WindowAttention(nn.Module):
    def __init__(self, dim: int, window: int, heads: int, v2: bool) -> None:
        super().__init__()
        self.window_size, self.num_heads, self.v2 = (window, window), heads, v2
        self.scale = (dim // heads) ** -0.5
        self.register_buffer("relative_position_index", relative_position_index(window))
        if v2:
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False)
            )
            line = torch.arange(1 - window, window) / (window - 1) * 8
            grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
            table = grid.sign() * (grid.abs() + 1).log2() / 3
            self.register_buffer("relative_coords_table", table[None], False)
            self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        else:
            self.relative_position_bias_table = nn.Parameter(
                torch.zeros((2 * window - 1) ** 2, heads)
            )
        self.qkv = nn.Linear(dim, 3 * dim, bias=not v2)
        self.attn_drop = nn.Dropout(0.0)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.0)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        if self.v2:
            bias = torch.cat((self.q_bias, 0 * self.v_bias, self.v_bias))
            qkv = F.linear(x, self.qkv.weight, bias)
        else:
            qkv = self.qkv(x)
        q, k, v = qkv.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.v2:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            logits = q @ k.mT * self.logit_scale.clamp(max=math.log(100)).exp()
            table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
            logits = logits + 16 * table[self.relative_position_index].permute(2, 0, 1).sigmoid()
        else:
            table = self.relative_position_bias_table
            logits = q * self.scale @ k.mT + table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            logits = logits.view(-1, len(mask), self.num_heads, n, n) + mask[None, :, None]
            logits = logits.flatten(0, 1)
        x = self.attn_drop(self.softmax(logits)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, c)))


def attention_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """The regions of a padded grid, and which of a window's tokens are of different ones."""
    regions, count = torch.zeros(1, height, width, 1), 0
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for rows in spans:
        for cols in spans:
            regions[:, rows, cols] = count
            count += 1
    region = to_windows(regions, window)[0, :, :, 0]  # (n, N)
    return (region[:, None] != region[:, :, None]) * -100.0


class SwinBlock(nn.Module):
    """What both kinds of blocks share."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, v2: bool) -> None:
        super().__init__()
        self.window_size, self.shift_size, self.v2 = window, shift, v2
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads, v2)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def _run(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        own = x if self.v2 else self.norm1(x)
        grid = pad_to_windows(own.unflatten(1, size), self.window_size)
        grid = grid.roll((-self.shift_size,) * 2, (1, 2))
        windows = to_windows(grid, self.window_size)
        out = self.attn(windows.flatten(0, 1), mask).view(windows.shape)
        grid = from_windows(out, self.window_size, *grid.shape[1:3])
        grid = grid.roll((self.shift_size,) * 2, (1, 2))[:, : size[0], : size[1]].flatten(1, 2)
        if self.v2:
            x = x + self.drop_path(self.norm1(grid))
            return x + self.drop_path(self.norm2(self.mlp(x)))
        x = x + self.drop_path(grid)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassifierBlock(SwinBlock):
    def __init__(self, dim, heads, window, shift, v2, input_resolution) -> None:
        super().__init__(dim, heads, window, shift, v2)
        self.input_resolution = input_resolution
        mask = attention_mask(*input_resolution, window, shift) if shift else None
        self.register_buffer("attn_mask", mask, False)

    def forward(self, x):
        return self._run(x, self.input_resolution, self.attn_mask)


class DetectorBlock(SwinBlock):
    H = W = None

    def forward(self, x, mask_matrix):
        return self._run(x, (self.H, self.W), mask_matrix if self.shift_size else None)


class BasicLayer(nn.Module):
    def __init__(self, dim, heads, window, depth, size, v2) -> None:
        super().__init__()
        self.window_size, self.use_checkpoint, self.size = window, False, size
        shifts = [window // 2 if k % 2 else 0 for k in range(depth)]
        if size is None:
            blocks = [DetectorBlock(dim, heads, window, shift, v2) for shift in shifts]
        else:
            blocks = [ClassifierBlock(dim, heads, window, shift, v2, size) for shift in shifts]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        args = ()
        if self.size is None:
            sides = [-(-n // self.window_size) * self.window_size for n in (height, width)]
            args = (attention_mask(*sides, self.window_size, self.window_size // 2),)
        for block in self.blocks:
            if self.size is None:
                block.H, block.W = height, width
            x = checkpoint(block, x, *args) if self.use_checkpoint else block(x, *args)
        return x


class OfficialSwin(nn.Module):
    """Patches and stages; a detector's takes images of any size."""

    def __init__(self, img_size: int | None = None, v2: bool = False, window: int = 7) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        sizes = [None] * 2 if img_size is None else [(img_size // n,) * 2 for n in (4, 8)]
        self.layers = nn.ModuleList(
            BasicLayer(16 * 2**i, 2**i, window, 2, sizes[i], v2) for i in range(2)
        )
        self.reduction = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> list[Tensor]:
        grid, maps = self.patch_embed(x).permute(0, 2, 3, 1), []
        for i, layer in enumerate(self.layers):
            size = grid.shape[1:3]
            grid = layer(grid.flatten(1, 2), *size).unflatten(1, size)
            maps.append(grid.permute(0, 3, 1, 2))
            grid = self.reduction(grid[:, ::2, ::2]) if i == 0 else grid
        return maps

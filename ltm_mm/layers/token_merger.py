"""Merging on a grid of tokens, the same for every backbone family (ours)."""

from torch import Tensor, nn

from ..ops import (
    Merge,
    bands,
    joined,
    keep_norm,
    pad_to_windows,
    slot_grid,
    to_windows,
    window_mass,
)
from .mask_module import GENTLE, SHARP, MaskModule


class TokenMerger(nn.Module):
    """Merges every w x w window of a token grid into s x s slots.

    Undo it with :func:`ltm_mm.ops.unmerge_grid`. A later merge of the same stage is
    given the masses of the slots it merges (``Merge.slot_mass()`` of the earlier one).

    Args:
        window: tokens per window side (w).
        slots: slots per window side (s), ``1 <= slots < window``.
        steps: content steps of the mask module.
        for_convolution: whether a convolution without a norm before it runs on the slots:
            they are stretched to the length of their tokens, see :func:`ltm_mm.ops.keep_norm`,
            and content moves them less.
    """

    def __init__(
        self, window: int, slots: int, steps: int = 2, for_convolution: bool = False
    ) -> None:
        super().__init__()
        self.for_convolution = for_convolution
        self.residual = True  # the way back, see Merge
        self.window = window
        self.slots = slots
        self.mask = MaskModule(window, slots, steps, GENTLE if for_convolution else SHARP)

    def forward(self, grid: Tensor, mass: Tensor | None = None) -> Merge:
        """Merge a grid.

        Args:
            grid: tokens ``(B, H, W, C)``, any H, W >= 1.
            mass: how many original tokens each token stands for ``(1 or B, H, W, 1)``;
                0 keeps a token out (at least one of a window's must be in). None: 1.

        Returns:
            The merge; its ``slots`` are ``(B, ceil(H * s / w), ceil(W * s / w), C)``.
        """
        mass = window_mass(grid, self.window, mass)
        slots, back, first = [], [], 0
        for band in (parts := bands(grid, self.window)):
            windows = to_windows(pad_to_windows(band, self.window), self.window)
            last = first + windows.shape[1]
            # Compiled and exported there is one part: a slice would fix sizes there.
            part_mass = mass if mass is None or len(parts) == 1 else mass[:, first:last]
            to_slots, merged, own = self.mask(windows, part_mass)
            if self.for_convolution:
                merged = keep_norm(merged, windows, to_slots)
            slots.append(slot_grid(merged, band, self.window))
            back.append(own)
            first = last
        return Merge(grid, joined(slots), joined(back), mass, self.window, self.residual)

"""Merging on a grid of tokens, the same for every backbone family (ours)."""

from torch import Tensor, nn

from ..ops import Merge, bands, joined, merge_grid, pad_to_windows, to_windows, window_mass
from .mask_module import MaskModule


class TokenMerger(nn.Module):
    """Merges every w x w window of a token grid into s x s slots.

    Undo it with :func:`ltm_mm.ops.unmerge_grid`. A later merge of the same stage is
    given the masses of the slots it merges (``Merge.slot_mass()`` of the earlier one).

    Args:
        dim: channels (C).
        window: tokens per window side (w).
        slots: slots per window side (s), ``1 <= slots < window``.
        steps: content steps of the mask module.
        keep_norm: stretch the slots to the length of their tokens, for layers without a
            layer norm before them; see :func:`ltm_mm.ops.merge_keeping_norm`.
    """

    def __init__(
        self, dim: int, window: int, slots: int, steps: int = 1, keep_norm: bool = False
    ) -> None:
        super().__init__()
        self.keep_norm = keep_norm
        self.residual = True  # the way back, see Merge
        self.window = window
        self.slots = slots
        self.mask = MaskModule(dim, window, slots, steps)

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
            to_slots, own = self.mask(windows, part_mass)
            slots.append(merge_grid(band, windows, to_slots, self.window, self.keep_norm))
            back.append(own)
            first = last
        return Merge(grid, joined(slots), joined(back), mass, self.window, self.residual)

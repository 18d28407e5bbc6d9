"""How mask modules and merging blocks are recognised, whatever their family."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .detail import Detail


class MaskModule(nn.Module):
    """Base of modules that compute a mask from tokens; a block holds one as ``merge``.

    Attributes:
        keep: tokens that are kept (P), per window or per unit of the family's plans.
        detail: corrects the merged block's update, see :class:`.detail.Detail`; None: no
            correction.
    """

    keep: int
    detail: Detail | None

    def __init__(self) -> None:
        super().__init__()
        self.detail = None

    def grow_detail(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Create a detail if a state dict holds one under ``prefix``, with its sizes."""
        weight = state.get(f"{prefix}detail.down.weight")
        if weight is not None and self.detail is None:
            self.detail = Detail(weight.shape[1], weight.shape[0]).to(weight).train(self.training)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.grow_detail(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"keep={self.keep}"


class MergingBlock(nn.Module):
    """Marks a transformer block that can run on merged tokens.

    Attributes:
        merge: its mask module, or a module that holds it; None: nothing is merged.
    """

    merge: nn.Module | None


class MergeScope(nn.Module):
    """Marks the smallest module around a merge whose input and output are all tokens.

    A merging plan is chosen per such module: a Swin's block, a ViT's sequence of blocks, an
    EfficientViT's stage.
    """


def grow_details(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Create the details that a state dict holds for a model's mask modules."""
    for name, module in model.named_modules():
        if isinstance(module, MaskModule):
            module.grow_detail(state, f"{name}.")


def merging_blocks(model: nn.Module) -> Iterator[tuple[str, MergingBlock]]:
    """Path and module of every block that merges tokens, in order."""
    for name, module in model.named_modules():
        if isinstance(module, MergingBlock) and module.merge is not None:
            yield name, module


def merges(model: nn.Module) -> bool:
    """Whether any block of a model merges tokens."""
    return any(True for _ in merging_blocks(model))

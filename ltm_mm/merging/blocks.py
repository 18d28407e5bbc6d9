"""How mask modules and merging blocks are told from other modules, whatever their family."""

from collections.abc import Iterator

from torch import nn


class MaskModule(nn.Module):
    """Base of the modules that make a mask from tokens; a block holds one as ``merge``.

    Attributes:
        keep: tokens that are kept (P), of a window or of what the family's plans count.
    """

    keep: int

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
    """Marks the smallest module that takes and returns all tokens around a merge.

    It is what a merging plan decides about: a Swin's block, a ViT's sequence of blocks, an
    EfficientViT's stage.
    """


def merging_blocks(model: nn.Module) -> Iterator[tuple[str, MergingBlock]]:
    """Path and block of everything in a model that merges tokens, in order."""
    for name, module in model.named_modules():
        if isinstance(module, MergingBlock) and module.merge is not None:
            yield name, module


def merges(model: nn.Module) -> bool:
    """Whether any block of a model merges tokens."""
    return any(True for _ in merging_blocks(model))

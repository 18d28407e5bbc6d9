"""Where a model has what can merge, family by family; the records name these classes."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from ..checkpoints.learned import Stages
from ..models.backbones import efficientvit, mobilevit, vit
from ..models.backbones.swin import SwinBlock, swin_plan
from ..models.timm_vit import check_vit, merge_vit
from ..presets import Keep, Plan, resolve_plan
from .mm import MMSwinBlock
from .official import OfficialSwinBlock, OfficialSwinV2Block
from .swin import MergedSwin, is_instance_of, wrap_block
from .timm import TimmSwinBlock, TimmSwinV2Block
from .torchvision import TorchvisionSwinBlock, TorchvisionSwinV2Block
from .transformers import HFOldSwinLayer, HFSwinLayer, HFSwinV2Layer

SWINS: tuple[type[MergedSwin], ...] = (
    MMSwinBlock,
    TimmSwinBlock,
    TimmSwinV2Block,
    TorchvisionSwinBlock,
    TorchvisionSwinV2Block,
    HFSwinLayer,
    HFOldSwinLayer,
    HFSwinV2Layer,
    OfficialSwinBlock,
    OfficialSwinV2Block,
)


class FamilyAdapter:
    """How a family's blocks are found in a model and merge; its stages are of any type.

    Attributes:
        name: as in :data:`ltm_mm.families.FAMILIES`.
        supported: the models that it knows, for messages.
        skipped: first stages of a plan of the family that have no blocks and are not found.
    """

    name: str
    supported: str
    skipped = 0

    @staticmethod
    def backbones(model: nn.Module) -> list[list[Any]]:
        """The stages of every backbone in a model, in order."""
        raise NotImplementedError

    @staticmethod
    def check(stages: Sequence[Any]) -> None:
        """Raise a ValueError if something stands against merging in a backbone."""

    @staticmethod
    def whole(stages: Sequence[Any], window: int | None) -> int:
        """The number that is all tokens in a plan."""
        raise NotImplementedError

    @staticmethod
    def plan(keep: Keep, stages: Sequence[Any], window: int | None) -> Plan:
        """The tokens that every block of every stage keeps."""
        raise NotImplementedError

    @staticmethod
    def wrap_stage(stage: Any, counts: Sequence[int], window: int | None) -> None:
        """Swap the classes of a stage's blocks."""
        raise NotImplementedError


class SwinAdapter(FamilyAdapter):
    """Swin blocks; a stage is a list of those with one parent."""

    name = "swin"
    supported = "a Swin of mmdet, mmseg, mmpretrain, timm, torchvision, transformers or its authors"

    @staticmethod
    def backbones(model: nn.Module) -> list[list[list[nn.Module]]]:
        """The stages of every backbone in a model, in order."""
        stages = [(n, [c for c in m.children() if adapter(c)]) for n, m in model.named_modules()]
        return by_backbone([(name, blocks) for name, blocks in stages if blocks])

    @staticmethod
    def check(stages: Sequence[list[nn.Module]]) -> None:
        """Raise a ValueError unless all windows are equal."""
        sizes = {adapter_of(block).block_windows(block).size for stage in stages for block in stage}
        if len(sizes) > 1:
            raise ValueError(
                f"all windows of a backbone must have one size to be merged, found "
                f"{' and '.join(map(str, sorted(sizes)))}: build it for larger images, or a timm "
                "model with always_partition=True"
            )

    @staticmethod
    def whole(stages: Sequence[list[nn.Module]], window: int | None) -> int:
        """Tokens per window."""
        block = stages[0][0]
        return adapter_of(block).block_windows(block).size ** 2

    @staticmethod
    def plan(keep: Keep, stages: Sequence[list[nn.Module]], window: int | None) -> Plan:
        """The tokens that every block of every stage keeps of a window."""
        block = stages[0][0]
        width = adapter_of(block).norms(block)[0].weight.numel()
        size = adapter_of(block).block_windows(block).size
        return swin_plan(keep, [len(stage) for stage in stages], size, width)

    @staticmethod
    def wrap_stage(stage: list[nn.Module], counts: Sequence[int], window: int | None) -> None:
        """Swap the classes of a stage's blocks."""
        for block, count in zip(stage, counts, strict=True):
            wrap_block(block, adapter_of(block), count)


def by_backbone(stages: Sequence[tuple[str, Any]], number: int = -1) -> list[list[Any]]:
    """Group stages whose paths differ in one number alone: ``student.stages.0``, ``.1``, ...

    Args:
        stages: path and stage, in order.
        number: which of the numbers in a path counts stages.
    """
    backbones: dict[str, list[Any]] = {}
    for path, stage in stages:
        numbers = list(re.finditer(r"\d+", path))
        key = ""
        if len(numbers) >= -number:
            key = path[: numbers[number].start()] + "*" + path[numbers[number].end() :]
        backbones.setdefault(key, []).append(stage)
    return list(backbones.values())


def swin_stages(model: nn.Module) -> Stages:
    """A model's Swin blocks with their norms, stage by stage, whether they merge or not.

    Raises:
        ValueError: if it has none, or several backbones.
    """
    stages: list[list[tuple[nn.Module, Any]]] = []
    for parent in model.modules():
        blocks = [
            (c, _norms(c)) for c in parent.children() if isinstance(c, SwinBlock) or adapter(c)
        ]
        if blocks:
            stages.append(blocks)
    if not stages:
        raise ValueError(f"{type(model).__name__} has no Swin blocks, which details are for")
    widths = [blocks[0][1][0].weight.numel() for blocks in stages]
    if any(later <= earlier for earlier, later in pairwise(widths)):
        raise ValueError(f"details are for models with one Swin, this one has more: {widths}")
    return stages


def _norms(block: nn.Module) -> tuple[Any, Any]:
    if isinstance(block, SwinBlock):
        return block.norm1, block.norm2
    return adapter_of(block).norms(block)


def adapter(module: nn.Module) -> type[MergedSwin] | None:
    """The adapter of a Swin block; None for any other module."""
    return next((adapter_type for adapter_type in SWINS if adapter_type.matches(module)), None)


def adapter_of(block: nn.Module) -> type[MergedSwin]:
    """The adapter of a Swin block."""
    adapter_type = adapter(block)
    assert adapter_type is not None
    return adapter_type


class ViTAdapter(FamilyAdapter):
    """timm's ViT; its one stage is the whole model."""

    name = "vit"
    supported = "timm's VisionTransformer"

    @staticmethod
    def backbones(model: nn.Module) -> list[list[nn.Module]]:
        """Every ViT in a model, which is one stage."""
        return [[m] for m in model.modules() if is_instance_of(m, "timm", "VisionTransformer")]

    @staticmethod
    def check(stages: Sequence[Any]) -> None:
        """Raise a ValueError if a ViT's blocks cannot merge."""
        for model in stages:
            check_vit(model)

    @staticmethod
    def whole(stages: Sequence[nn.Module], window: int | None) -> int:
        """What plans are of."""
        return vit.TOKENS

    @staticmethod
    def plan(keep: Keep, stages: Sequence[nn.Module], window: int | None) -> Plan:
        """The tokens that are left after every block."""
        blocks: Any = stages[0].blocks
        model = (ViTAdapter.name, blocks[0].norm1.weight.numel())
        return resolve_plan(keep, [len(blocks)], vit.TOKENS, model, True)

    @staticmethod
    def wrap_stage(stage: Any, counts: Sequence[int], window: int | None) -> None:
        """Swap the classes of the model and its blocks."""
        merge_vit(stage, counts)


class MobileViTAdapter(FamilyAdapter):
    """timm's MobileViT; a stage is a ``MobileVitBlock``."""

    name = "mobilevit"
    supported = "timm's MobileViT"
    skipped = 2

    @staticmethod
    def backbones(model: nn.Module) -> list[list[nn.Module]]:
        """The stages with a transformer of every backbone in a model, in order."""
        stages = [
            (n, m) for n, m in model.named_modules() if is_instance_of(m, "timm", "MobileVitBlock")
        ]
        return by_backbone(stages, -2)  # stages.2.1

    @staticmethod
    def whole(stages: Sequence[nn.Module], window: int | None) -> int:
        """What plans are of."""
        return mobilevit.TOKENS

    @staticmethod
    def plan(keep: Keep, stages: Sequence[Any], window: int | None) -> Plan:
        """The tokens that are left after every block."""
        skipped = MobileViTAdapter.skipped
        depths = [0] * skipped + [len(stage.transformer) for stage in stages]
        model = (MobileViTAdapter.name, stages[0].transformer[0].norm1.weight.numel())
        return resolve_plan(keep, depths, mobilevit.TOKENS, model, True)[skipped:]

    @staticmethod
    def wrap_stage(stage: nn.Module, counts: Sequence[int], window: int | None) -> None:
        """Swap the classes of a block and its transformer's."""
        mobilevit.merge_block(stage, counts)


class EfficientViTAdapter(FamilyAdapter):
    """timm's EfficientViT of MIT Han Lab."""

    name = "efficientvit"
    supported = "timm's EfficientViT (MIT Han Lab)"

    @staticmethod
    def backbones(model: nn.Module) -> list[list[nn.Module]]:
        """The stages of every backbone in a model; MSRA's network of the same name has others."""
        names = ("EfficientVitStage", "EfficientVitLargeStage")
        return by_backbone(
            [
                (name, m)
                for name, m in model.named_modules()
                if is_instance_of(m, "timm", *names) and not type(m).__module__.endswith("_msra")
            ]
        )

    @staticmethod
    def whole(stages: Sequence[nn.Module], window: int | None) -> int:
        """Tokens per window."""
        return (8 if window is None else window) ** 2

    @staticmethod
    def plan(keep: Keep, stages: Sequence[nn.Module], window: int | None) -> Plan:
        """The tokens that every attention block keeps of a window."""
        return efficientvit.resolve_stage_plans(keep, stages, 8 if window is None else window)

    @staticmethod
    def wrap_stage(stage: nn.Module, counts: Sequence[int], window: int | None) -> None:
        """Swap the classes of a stage and its attention blocks."""
        efficientvit.merge_stage(stage, counts, 8 if window is None else window)

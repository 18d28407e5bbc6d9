"""Token merging on a model in memory: put it on, take it off (ours).

Works on any built mmdet, mmseg or timm model with Swin, EfficientViT, MobileViT or ViT
stages: each stage that the plan merges in is replaced by one that shares its parameters. Taking
the merging off puts the very same stages back, with whatever training has changed.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..merging.masks import check_mask
from ..presets import Keep, Plan, resolve_plan
from .backbones import efficientvit, mobilevit, vit
from .backbones.base import LTMBackbone
from .backbones.efficientvit import EfficientVitLTMStage
from .backbones.mobilevit import MobileVitLTMBlock
from .backbones.swin import SwinBlock, swin_plan

SERVED = (
    "mmdet's, mmseg's or timm's SwinTransformer, timm's EfficientViT (MIT Han Lab), MobileViT "
    "or VisionTransformer"
)
# Class of a stage -> family; a ViT's blocks are one stage without a class of its own.
STAGES = {
    "SwinBlockSequence": "swin",
    "SwinTransformerStage": "swin",
    "EfficientVitStage": "efficientvit",
    "EfficientVitLargeStage": "efficientvit",
    "MobileVitBlock": "mobilevit",
}
MSRA = "efficientvit_msra"  # timm's module of another EfficientViT, with stages of the same name
PACKAGES = ("mmdet", "mmseg", "timm")


def apply(
    model: nn.Module, keep: Keep = "balanced", mask: str = "match", window_size: int | None = None
) -> nn.Module:
    """Merge tokens in a model that is already built, in place.

    Its parameters stay the same objects (an optimiser that holds them goes on), and
    its outputs keep their shapes; only soft masks add parameters. In a merged
    Swin stage of a timm model, parameters have mmdet's names while merging is on, and
    a grid that is no multiple of the window is padded before the shift, as in mmdet
    (timm pads after it). A timm ViT is of another class while merging is on.

    Args:
        model: a detector, segmentor, classifier or backbone with stages of one family.
        keep: the merging plan, as ``LTMSwin``, ``LTMEfficientViT``, ``LTMMobileViT`` and
            ``LTMViT`` take it.
        mask: 'match'; for a Swin also 'weighted' or 'soft', as ``LTMSwin`` takes it.
        window_size: tokens per merging window side of an EfficientViT (8 by default); a
            Swin's windows are its own, a ViT has none.

    Returns:
        The model itself.

    Raises:
        ValueError: if it is no model, has no such stages, merges already, or the plan
            does not fit.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a built model (an nn.Module), got {model!r}")
    if any(isinstance(m, LTMBackbone | MergedStage) for m in model.modules()):
        raise ValueError(
            "the model merges tokens already: call ltm_mm.remove(model) first, or change its "
            "backbone's `keep`"
        )
    places = _stage_places(model)
    if not places:
        raise ValueError(f"{type(model).__name__} has no stages to merge in: use {SERVED}")
    stages = [getattr(parent, name) for parent, name in places]
    family = _family(*places[0])
    _check_options(family, mask, window_size)
    window = 8 if window_size is None else window_size
    if family == "swin":
        window = _window(stages[0].blocks[0])
    plan, whole = _resolve(keep, family, stages, window)
    merged = [
        _merged(family, parent, stage, counts, window, mask)
        if counts and min(counts) < whole  # else there is nothing to merge in this stage
        else None
        for (parent, _), stage, counts in zip(places, stages, plan, strict=True)
    ]
    for (parent, name), stage, new in zip(places, stages, merged, strict=True):
        if new is not None:
            first = next(stage.parameters())
            setattr(parent, name, new.to(first.device, first.dtype).train(stage.training))
    return model


def _check_options(family: str, mask: str, window_size: int | None) -> None:
    check_mask(mask)
    if mask != "match" and family != "swin":
        raise ValueError(f"mask={mask!r} is for a Swin; this is a {family}")
    if window_size is not None and family != "efficientvit":
        raise ValueError(f"window_size is for an EfficientViT; this is a {family}")


def remove(model: nn.Module) -> nn.Module:
    """Take the merging of :func:`apply` off again, in place.

    Args:
        model: a model that ``apply`` was called on; any other is left as it is.

    Returns:
        The model itself, with the stages it was built with; their parameters have the
        values that training left them with.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MergedStage):
                setattr(parent, name, child.restored())
                child.let_go(parent)
    return model


class MergedStage:
    """Part of a stage that stands in another's place and can give it back.

    The replaced stage is kept out of the submodules (its parameters are those of the
    blocks that run), but it is copied and pickled along.
    """

    _original: tuple[nn.Module]

    def restored(self) -> nn.Module:
        """The original stage, on the device and in the mode that this one is in."""
        assert isinstance(self, nn.Module)
        original = self._original[0]
        for buffer in original.buffers():
            buffer.data = buffer.data.to(next(self.parameters()).device)
        return original.train(self.training)

    def let_go(self, parent: nn.Module) -> None:
        """Undo what was changed in the module that holds the stage: nothing."""


class MergedSwinStage(nn.Module, MergedStage):
    """Swin blocks with merging beside the downsampling of the original stage.

    Args:
        original: mmdet's or mmseg's ``SwinBlockSequence``, timm's ``SwinTransformerStage``.
        blocks: blocks that share the original's parameters.
    """

    def __init__(self, original: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self._original = (original,)
        self.blocks = nn.Sequential(*blocks)
        self.downsample = original.downsample


class MergedMMStage(MergedSwinStage):
    """In the place of mmdet's and mmseg's ``SwinBlockSequence``."""

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple:
        """``(B, H * W, C)``, (H, W) -> what goes on, its size, the stage's map, its size."""
        x = self.blocks(x.unflatten(1, hw_shape)).flatten(1, 2)
        if self.downsample is None:
            return x, hw_shape, x, hw_shape
        return *self.downsample(x, hw_shape), x, hw_shape


class MergedTimmStage(MergedSwinStage):
    """In the place of timm's ``SwinTransformerStage``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> the stage's map, channel-last."""
        return self.blocks(self.downsample(x))


class MergedEfficientVitStage(EfficientVitLTMStage, MergedStage):
    """In the place of timm's ``EfficientVitStage``."""

    def __init__(self, original: nn.Module, counts: Sequence[int], window: int) -> None:
        super().__init__(original, counts, window)
        self._original = (original,)


class MergedMobileVitBlock(MobileVitLTMBlock, MergedStage):
    """In the place of timm's ``MobileVitBlock``."""

    def __init__(self, original: nn.Module, counts: Sequence[int]) -> None:
        super().__init__(original, counts)
        self._original = (original,)


def _stage_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Parent and name of every stage of the model's (one) backbone, in order."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, _ in parent.named_children()
        if _family(parent, name) is not None
    ]


def _family(parent: nn.Module, name: str) -> str | None:
    """Which family's stage a child is, if any's."""
    if name == "blocks" and _comes_from(parent, "VisionTransformer", "timm"):
        return "vit"
    child = getattr(parent, name)
    family = STAGES.get(type(child).__name__)
    if type(child).__module__.endswith(MSRA) or not _comes_from(child, None, *PACKAGES):
        return None
    return family


def _comes_from(module: nn.Module, name: str | None, *packages: str) -> bool:
    kind = type(module)
    return name in (None, kind.__name__) and kind.__module__.partition(".")[0] in packages


def _resolve(keep: Keep, family: str, stages: Sequence[nn.Module], window: int) -> tuple[Plan, int]:
    """The plan of every stage found, and the number that is all tokens."""
    if family == "efficientvit":
        return efficientvit.resolve_stage_plans(keep, stages, window), window**2
    if family == "swin":
        width, depths = stages[0].blocks[0].norm1.weight.numel(), [len(s.blocks) for s in stages]
        return swin_plan(keep, depths, window, width), window**2
    if family == "vit":
        width, tokens = stages[0][0].norm1.weight.numel(), vit.TOKENS
        return resolve_plan(keep, [len(stages[0])], tokens, (family, width), True), tokens
    # A MobileViT's first two stages have no block that could be found.
    depths = [0, 0, *(len(s.transformer) for s in stages)]
    width, tokens = stages[0].transformer[0].norm1.weight.numel(), mobilevit.TOKENS
    return resolve_plan(keep, depths, tokens, (family, width), True)[2:], tokens


def _merged(
    family: str, parent: nn.Module, stage: nn.Module, counts: Sequence[int], window: int, mask: str
) -> nn.Module:
    """What stands in a stage's place."""
    if family == "vit":
        from .timm_vit import MergedVitBlocks  # imports timm

        return MergedVitBlocks(parent, counts)
    if family == "efficientvit":
        return MergedEfficientVitStage(stage, counts, window)
    if family == "mobilevit":
        return MergedMobileVitBlock(stage, counts)
    return _merged_swin_stage(stage, counts, window, mask)


def _window(block: nn.Module) -> int:
    """Tokens per window side of a Swin block of mmdet, mmseg or timm."""
    window = block.window_size if hasattr(block, "window_size") else block.attn.window_size
    rows, cols = (window, window) if isinstance(window, int) else window
    if rows != cols:
        raise ValueError(f"only square windows can be merged, the model's are {rows} x {cols}")
    return rows


def _merged_swin_stage(
    stage: nn.Module, counts: Sequence[int], window: int, mask: str
) -> MergedSwinStage:
    timm = type(stage).__name__ == "SwinTransformerStage"
    blocks = [
        _share_swin_block(block, window, keep, mask, timm)
        for block, keep in zip(stage.blocks, counts, strict=True)
    ]
    return (MergedTimmStage if timm else MergedMMStage)(stage, blocks)


def _share_swin_block(block: nn.Module, window: int, keep: int, mask: str, timm: bool) -> SwinBlock:
    """Our Swin block around another's layers and parameters."""
    if _window(block) != window:
        raise ValueError(
            f"all windows of the model must have one size to be merged, found {_window(block)} "
            f"and {window}: build the timm model with always_partition=True"
        )
    attention = block.attn if timm else block.attn.w_msa
    dim = attention.proj.out_features
    mine = SwinBlock(
        dim,
        attention.num_heads,
        window,
        keep,
        shifted=any(block.shift_size) if timm else block.attn.shift_size > 0,
        hidden=1,  # the MLP is the other's
        drop_path=0.0,
        mask=mask,
        drop=0.0,
        act_cfg=dict(type="GELU"),
        norm_cfg=dict(type="LN"),
        with_cp=getattr(block, "with_cp", False),
        qk_scale=attention.scale,
        attn_drop=attention.attn_drop.p,
    )
    mine.norm1, mine.norm2 = block.norm1, block.norm2
    share = mine.attn.w_msa
    share.qkv, share.proj, share.proj_drop = attention.qkv, attention.proj, attention.proj_drop
    share.relative_position_bias_table = attention.relative_position_bias_table
    if timm:
        first = nn.Sequential(block.mlp.fc1, block.mlp.act, block.mlp.drop1)
        mine.ffn.layers = nn.Sequential(first, block.mlp.fc2, block.mlp.drop2)
        mine.ffn.hidden = block.mlp.fc1.out_features
        mine.drop_path = block.drop_path1
    else:
        mine.ffn.layers, mine.ffn.hidden = block.ffn.layers, block.ffn.feedforward_channels
        mine.drop_path = block.attn.drop
    return mine

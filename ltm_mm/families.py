"""One record per family of backbones: all that the package knows about a family besides its code.

Adding a family is its backbone (``ltm_mm/models/backbones/``) and a record here. Code that needs
torch is given by name, ``"package.module:name"``, and imported on first use. Presets, plans,
configs, checkpoints, adapters and benchmarks read the records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

Counts = tuple[int, ...]
Options = Callable[[int, int], list[Counts]]


def by_position(shares: Sequence[Sequence[float]], depths: Sequence[int]) -> list:
    """Shares per stage: a block takes the entry at its relative depth in the stage's list."""
    stages = [shares[min(stage, len(shares) - 1)] for stage in range(len(depths))]
    return [
        [shares_of_stage[k * len(shares_of_stage) // depth] for k in range(depth)] or None
        for shares_of_stage, depth in zip(stages, depths, strict=True)
    ]


def falling_shares(share: float, depth: int) -> tuple[float, ...]:
    """Shares that fall by equal steps from block to block, down to ``share``."""
    return tuple(1 - (1 - share) * (k + 1) / depth for k in range(depth))


def falling(share: float, depths: Sequence[int]) -> list:
    """Shares that fall evenly over the blocks of every stage."""
    return [falling_shares(share, depth) if depth else None for depth in depths]


def midway(shares: tuple[float, float], depths: Sequence[int]) -> list:
    """Shares that fall evenly to ``share`` over a part of the blocks, after the first quarter."""
    (share, part), (depth,) = shares, depths
    first = falling_shares(share, max(round(part * depth), 1))
    return [((1.0,) * (depth // 4) + first + (share,) * depth)[:depth]]


def one_share(*shares: float) -> Options:
    """A plan's options: all blocks of a unit keep one of these shares."""
    return lambda depth, tokens: [(max(round(s * tokens), 1),) * depth for s in shares]


def square_numbers(depth: int, tokens: int) -> list[Counts]:
    """Square numbers down to a quarter: one for the first block, one for all later blocks."""
    side = round(tokens**0.5)
    sides = range(side, (side + 1) // 2 - 1, -1)
    pairs = [(a, b) for a in sides for b in sides if b <= a and b < side]
    return [(a * a, *[b * b] * (depth - 1))[:depth] for a, b in pairs]


GLOBAL_SHARES = (0.75, 0.6, 0.45, 0.3)
any_share = one_share(*GLOBAL_SHARES)


def from_first_or_second(depth: int, tokens: int) -> list[Counts]:
    """One share from the first block on, or from the second."""
    kept = [max(round(share * tokens), 1) for share in GLOBAL_SHARES]
    return [(first, *[k] * (depth - 1))[:depth] for k in kept for first in (tokens, k)]


def falling_from(depth: int, tokens: int) -> list[Counts]:
    """Counts that fall evenly, from one of three first blocks, over one of four spans."""

    def counts(last: int, start: int, length: int) -> Counts:
        shares = (min(max(k - start + 1, 0) / length, 1.0) for k in range(depth))
        return tuple(round(tokens - (tokens - last) * share) for share in shares)

    return [
        counts(round(share * tokens), start, length)
        for share in GLOBAL_SHARES
        for start in sorted({0, depth // 6, depth // 3})
        for length in sorted({1, max(depth // 4, 1), max(depth // 2, 1), depth - start})
    ]


@dataclass(frozen=True)
class Family:
    """What is known about a family. Only the first five fields are required.

    Attributes:
        name: as in ``ltm-swin-tiny``.
        title: its name in messages.
        code: import path of its backbone class.
        archs: values of the class's ``arch``.
        default: the default arch.
        sizes: arch -> the arguments that it sets, for a class that also takes these; may include
            short names of archs.
        presets: name -> shares of tokens to keep, in the form that ``spread`` takes.
        spread: (a preset's shares, depths of all stages) -> one plan entry per stage.
        paper: (width, depths) -> the plan that matches the paper's MACs.
        options: (depth, tokens) -> ways to merge in a unit of a plan: a block, or a stage whose
            merged tokens are passed from block to block.
        error_weights: per stage, what losing the tokens of one block adds to the squared error;
            None: the same everywhere.
        adapter: its :class:`ltm_mm.adapters.families.FamilyAdapter`, which finds its blocks in
            other libraries' models; None: not supported by :func:`ltm_mm.apply`.
        takes_window, takes_detail: whether it has a ``window_size`` option, and learned details.
        replaces: types of mmdet and mmseg that ``--ltm`` converts.
        timm: pattern of timm's names for the archs; None: not in timm.
        timm_prefix: timm names with this prefix are archs, too.
        timm_backbone: whether ``--ltm`` converts a ``TIMMBackbone`` of it.
        timm_maps: default ``out_indices`` of a ``TIMMBackbone``.
        timm_keywords: our keywords -> timm's, for networks of other sizes.
        timm_options: keywords that make timm's network accept the same images as ours.
        timm_sized: whether timm's network is built for one image size.
        checkpoints: (source of weights, pattern in its keys, converter) each.
        parts: attributes of its blocks -> 'attention' or 'mlp', if named differently.
    """

    name: str
    title: str
    code: str
    archs: tuple[str, ...]
    default: str
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    presets: Mapping[str, Any] = field(default_factory=dict)
    spread: Callable[[Any, Sequence[int]], list] = by_position
    paper: Mapping[tuple[int, Counts], Any] = field(default_factory=dict)
    options: Options = any_share
    error_weights: tuple[float, ...] | None = None
    adapter: str | None = None
    takes_window: bool = False
    takes_detail: bool = False
    replaces: tuple[str, ...] = ()
    timm: str | None = None
    timm_prefix: str | None = None
    timm_backbone: bool = True
    timm_maps: int | tuple[int, ...] | None = None
    timm_keywords: Mapping[str, str] = field(default_factory=dict)
    timm_options: Mapping[str, Any] = field(default_factory=dict)
    timm_sized: bool = False
    checkpoints: tuple[tuple[str, str, str], ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def backbone(self) -> str:
        """The name of its class in the registry."""
        return self.code.rpartition(":")[2]

    @property
    def type(self) -> str:
        """The ``type`` in a config."""
        return f"ltm_mm.{self.backbone}"

    def in_timm(self, arch: str) -> str:
        """timm's name of an arch; names from timm are returned unchanged."""
        return self.timm.format(arch) if self.timm and arch in self.archs else arch

    def arch_of(self, timm_name: str) -> str | None:
        """The arch for a timm model name (without its tag); None if there is none."""
        if self.timm_prefix and timm_name.startswith(self.timm_prefix):
            return timm_name
        return next((arch for arch in self.archs if self.in_timm(arch) == timm_name), None)


def load(name: str) -> Any:
    """Import what a record names as ``"package.module:name"``."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


_SWIN = {
    "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "large": dict(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
_SWIN_CHECKPOINTS = (
    ("Hugging Face Swin", r"^encoder\.layers\.\d+\.blocks\.\d+\.attention\.",
     "ltm_mm.checkpoints.transformers:convert_swin"),
    ("torchvision Swin", r"^features\.1\.0\.attn\.qkv\.",
     "ltm_mm.checkpoints.torchvision:convert_swin"),
    ("OpenMMLab Swin", r"^stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.",
     "ltm_mm.checkpoints.mm:convert_swin"),
    ("official Swin", r"^layers\.0\.downsample\.", "ltm_mm.checkpoints.official:convert_swin"),
    ("timm Swin", r"^layers[._]\d+\.blocks\.\d+\.attn\.qkv\.",
     "ltm_mm.checkpoints.timm:convert_swin"),
)  # fmt: skip
# Presets are what tools/plan.py found on weights trained on photos, see docs/fidelity.md. The paper
# (arXiv 2407.15219) publishes only the MACs of its plans: the plans here are ours and match these
# MACs at the paper's image size; tools/flops.py prints them.
SWIN = Family(
    "swin",
    "Swin",
    "ltm_mm.models.backbones.swin:LTMSwin",
    tuple(_SWIN),
    "tiny",
    sizes=_SWIN | {name[0]: sizes for name, sizes in _SWIN.items()},
    presets={
        "light": ((1.0,), (1.0,), (1.0, 1.0, 0.65, 0.51, 0.33, 0.33), (0.33, 0.1)),
        "balanced": ((1.0,), (1.0,), (0.51, 0.33, 0.33, 0.18, 0.18, 0.18), (0.18, 0.1)),
        "fast": ((1.0, 0.49), (1.0, 0.49), (0.18, 0.18, 0.18, 0.1, 0.1, 0.1), (0.1, 0.1)),
        # Meant for learned models, see docs/learn.md.
        "fastest": ((0.33,), (0.245,), (0.18, 0.18, 0.18, 0.1, 0.1, 0.1), (0.1, 0.1)),
    },
    paper={
        (96, (2, 2, 6, 2)): (None, None, (None, *(0.72,) * 5), 0.72),
        (128, (2, 2, 18, 2)): (None, None, (None, *(0.72,) * 17), 0.72),
    },
    options=one_share(32 / 49, 25 / 49, 16 / 49, 9 / 49, 5 / 49),
    # Of a small Swin trained on street photos (tools/real_weights.py swin --target-time).
    error_weights=(2e-2, 1.5e-2, 3e-4, 1e-5),
    adapter="ltm_mm.adapters.families:SwinAdapter",
    takes_detail=True,
    replaces=("SwinTransformer",),
    timm="swin_{}_patch4_window7_224",
    timm_backbone=False,
    timm_keywords={
        **{k: k for k in ("depths", "num_heads", "patch_size", "window_size", "mlp_ratio")},
        "drop_path_rate": "drop_path_rate",
        "embed_dims": "embed_dim",
        "in_channels": "in_chans",
    },
    timm_options=dict(window_size=7, always_partition=True),  # at every size, as ours
    timm_sized=True,
    checkpoints=_SWIN_CHECKPOINTS,
)
EFFICIENTVIT = Family(
    "efficientvit",
    "EfficientViT",
    "ltm_mm.models.backbones.efficientvit:LTMEfficientViT",
    ("b0", "b1", "b2", "b3", "l1", "l2", "l3"),
    "b1",
    presets={
        "light": ((1.0, 0.735, 0.735),) * 4,
        "balanced": ((1.0, 0.51, 0.51),) * 4,
        "fast": ((0.51,),) * 4,
    },
    paper={(128, (0, 0, 3, 4)): (None, None, (64, 25, 16), (64, 36, 25, 25))},
    options=square_numbers,
    adapter="ltm_mm.adapters.families:EfficientViTAdapter",
    takes_window=True,
    timm="efficientvit_{}",
    timm_keywords={"in_channels": "in_chans"},
    checkpoints=(
        (
            "mit-han-lab EfficientViT",
            r"^(input_stem|stages\.\d+)\.op_list\.",
            "ltm_mm.checkpoints.mit_han_lab:convert_efficientvit",
        ),
        (
            "timm EfficientViT",
            r"^stem[._]in_conv\.conv\.",
            "ltm_mm.checkpoints.timm:convert_efficientvit",
        ),
    ),
    parts={"context_module": "attention", "local_module": "mlp"},
)
VIT = Family(
    "vit",
    "ViT",
    "ltm_mm.models.backbones.vit:LTMViT",
    ("tiny", "small", "base", "large"),
    "small",
    presets={"light": (0.75, 1 / 3), "balanced": (0.55, 1 / 3), "fast": (0.36, 1 / 2)},
    spread=midway,
    paper={
        (384, (12,)): (falling_shares(0.617, 12),),
        (768, (12,)): (falling_shares(0.48, 12),),
    },
    options=falling_from,
    adapter="ltm_mm.adapters.families:ViTAdapter",
    timm="vit_{}_patch16_224",
    timm_prefix="vit_",
    timm_maps=3,
    timm_keywords={
        **{k: k for k in ("img_size", "patch_size", "num_heads", "drop_path_rate")},
        "embed_dims": "embed_dim",
        "num_layers": "depth",
        "in_channels": "in_chans",
    },
    timm_options=dict(dynamic_img_size=True, dynamic_img_pad=True),
    checkpoints=(
        ("timm ViT", r"^blocks\.\d+\.attn\.qkv\.", "ltm_mm.checkpoints.timm:convert_vit"),
    ),
)
MOBILEVIT = Family(
    "mobilevit",
    "MobileViT",
    "ltm_mm.models.backbones.mobilevit:LTMMobileViT",
    ("xxs", "xs", "s"),
    "s",
    presets={"light": 0.8, "balanced": 0.65, "fast": 0.5},
    spread=falling,
    # The paper's figures (plain XS 0.70 G, S 1.40 G) are 0.69 of what the same networks count
    # here, and its convolutions alone exceed the paper's figure for LTM: these plans match the
    # *ratio* to the plain network's MACs (0.74 and 0.84).
    paper={
        (96, (0, 0, 2, 4, 3)): (None, None, 9, 9, 9),
        (144, (0, 0, 2, 4, 3)): falling(0.2, (0, 0, 2, 4, 3)),
    },
    options=from_first_or_second,
    adapter="ltm_mm.adapters.families:MobileViTAdapter",
    timm="mobilevit_{}",
    timm_maps=(0, 1, 2, 3, 4),
    timm_keywords={"in_channels": "in_chans"},
    checkpoints=(
        (
            "timm MobileViT",
            r"^stages[._]\d+\.1\.transformer\.\d+\.attn\.qkv\.",
            "ltm_mm.checkpoints.timm:convert_mobilevit",
        ),
    ),
)
FAMILIES = {f.name: f for f in (SWIN, EFFICIENTVIT, VIT, MOBILEVIT)}
# Backbone names that tools accept instead of a config.
NAMED = ", ".join(f"ltm-{f.name}-{{{','.join(f.archs)}}}" for f in FAMILIES.values())


def of_type(type_name: str) -> Family | None:
    """The family whose backbone a config's ``type`` names, with or without its scope."""
    short = type_name.rpartition(".")[2]
    return next((f for f in FAMILIES.values() if f.backbone == short), None)


def titles(families: Iterable[Family]) -> str:
    """Families in a message: 'a Swin or an EfficientViT'."""
    named = [f.title for f in families]
    return " or ".join(f"{'an' if title[0] in 'AEIOU' else 'a'} {title}" for title in named)

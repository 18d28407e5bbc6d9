"""One record per family of backbones: what it is called here and in timm.

Adding a family is its backbone (``ltm_mm/models/backbones/``), a record here, presets
(:mod:`.presets`), and how to find its blocks in a model (``ltm_mm/adapters/families.py``).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyNames:
    """Names of a family.

    Attributes:
        name: of the family, as in ``presets.PRESETS``.
        backbone: of its class in the registry.
        archs: what its class takes as ``arch``.
        default: the arch where none is given.
        timm: timm's name of an arch.
    """

    name: str
    backbone: str
    archs: tuple[str, ...]
    default: str
    timm: str

    @property
    def type(self) -> str:
        """What a config's ``type`` is."""
        return f"ltm_mm.{self.backbone}"

    def in_timm(self, arch: str | None) -> str:
        """timm's name of an arch, which may be timm's own."""
        arch = arch or self.default
        return self.timm.format(arch) if arch in self.archs else arch


SIZES = ("tiny", "small", "base", "large")
SWIN = FamilyNames("swin", "LTMSwin", SIZES, "tiny", "swin_{}_patch4_window7_224")
VIT = FamilyNames("vit", "LTMViT", SIZES, "small", "vit_{}_patch16_224")
EFFICIENTVIT = FamilyNames(
    "efficientvit",
    "LTMEfficientViT",
    ("b0", "b1", "b2", "b3", "l1", "l2", "l3"),
    "b1",
    "efficientvit_{}",
)
MOBILEVIT = FamilyNames("mobilevit", "LTMMobileViT", ("xxs", "xs", "s"), "s", "mobilevit_{}")
FAMILIES = {family.name: family for family in (SWIN, EFFICIENTVIT, VIT, MOBILEVIT)}
# What tools take instead of a config.
NAMED = ", ".join(f"ltm-{f.name}-{{{','.join(f.archs)}}}" for f in FAMILIES.values())


def of_type(type_name: str) -> FamilyNames | None:
    """The family whose backbone a config's ``type`` names, with or without its scope."""
    short = type_name.rpartition(".")[2]
    return next((f for f in FAMILIES.values() if f.backbone == short), None)

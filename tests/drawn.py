"""Cases drawn by number: a backbone of any library, a size, a plan, a detail."""

import copy
import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import timm
import torch
from mmdet.models.backbones import SwinTransformer
from torch import Tensor, nn

import ltm_mm
from ltm_mm.adapters.apply import convert_stages
from ltm_mm.adapters.families import swin_stages
from ltm_mm.merging import Detail, MaskModule
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from tests.adapters.sources import ONE_SIZE, SOURCES
from tests.models import test_efficientvit, test_mobilevit, test_vit
from tests.models.contract import settled

VIT = dict(embed_dim=24, num_heads=2, depth=4, num_classes=5)
ANY_SIZE = dict(dynamic_img_size=True, dynamic_img_pad=True)
APPLIED: dict[str, Callable[[], nn.Module]] = {
    **SOURCES,
    "timm vit": lambda: timm.create_model("vit_tiny_patch16_224", **VIT, **ANY_SIZE),
    "timm vit, registers": lambda: timm.create_model(
        "vit_tiny_patch16_224", reg_tokens=2, global_pool="avg", **VIT, **ANY_SIZE
    ),
    "timm efficientvit": lambda: timm.create_model("efficientvit_b0", num_classes=5),
    "timm mobilevit": lambda: timm.create_model("mobilevit_xxs", num_classes=5),
}
if importlib.util.find_spec("transformers"):  # mmpretrain cannot be imported beside it
    from tests.adapters import test_transformers as hf

    del APPLIED["mmpretrain"]
    APPLIED |= {f"transformers {name}": hf.MODELS[name] for name in ("backbone", "backbone v2")}
OURS = ("LTMSwin", "LTMViT", "LTMMobileViT", "LTMEfficientViT")
KINDS = (*OURS, *APPLIED, "LTMSwin")  # the one with most options twice
# Whose patch embedding takes whole patches alone.
WHOLE_PATCHES = (
    *("timm", "timm v2", "torchvision", "torchvision v2"),
    *("official detector", "official detector v2"),
)


@dataclass
class Case:
    """What is tried.

    Attributes:
        number: seed of all that is drawn.
        kind: of :data:`KINDS`.
        options: of our backbone, without its plan.
        size: images, height, width.
        keep: the plan.
        detail: whether blocks have a detail.
    """

    number: int
    kind: str
    options: dict = field(default_factory=dict)
    size: tuple[int, int, int] = (1, 1, 1)
    keep: object = None
    detail: bool = False

    def __str__(self) -> str:
        own = [f"{k}={v}" for k, v in self.options.items()]
        size = "x".join(map(str, self.size))
        return f"{self.number} {self.kind} {size} {self.keep} {self.detail} {own}"

    def plain(self) -> nn.Module:
        """The model without merging, in eval mode, with weights that do something."""
        if self.kind in APPLIED:
            return copy.deepcopy(_template(self.kind))
        torch.manual_seed(self.number)
        return settled(self._own(None)).eval()

    def merged(self, plain: nn.Module) -> nn.Module:
        """A copy that merges, with parameters of its masks that are not at their start."""
        if self.kind in APPLIED:
            windows = {k: v for k, v in self.options.items() if k == "window_size"}
            model = ltm_mm.apply(copy.deepcopy(plain), self.keep, **windows)
        else:
            model = self._own(self.keep).eval()
            model.load_state_dict(plain.state_dict(), strict=False)
        generator = torch.Generator().manual_seed(self.number)
        for module in list(model.modules()):
            if isinstance(module, MaskModule):
                for parameter in module.parameters():
                    parameter.data.normal_(0, 0.1, generator=generator)
        if self.detail:
            for blocks in swin_stages(model):
                for block, norms in blocks:
                    if isinstance(getattr(block, "merge", None), MaskModule):
                        block.merge.detail = detail = Detail(norms[0].weight.numel()).eval()
                        detail.up.weight.data.normal_(0, 0.2, generator=generator)
        return model

    def all_kept(self, plain: nn.Module) -> nn.Module:
        """The plain model's weights on our code, nothing merged."""
        if self.kind not in APPLIED:
            return plain
        model = copy.deepcopy(plain)
        convert_stages(model, None, everywhere=True)
        return model

    def reference(self, plain: nn.Module) -> nn.Module | None:
        """Another library's model with the plain model's weights; None: there is none."""
        if self.kind in APPLIED:
            return plain
        if self.options.get("simple_pyramid"):
            return None
        reference = {
            "LTMSwin": lambda: SwinTransformer(**self.options),
            "LTMViT": lambda: test_vit.TestViTContract().reference(),
            "LTMMobileViT": lambda: test_mobilevit.TestMobileViTContract().reference(),
            "LTMEfficientViT": lambda: test_efficientvit.TestEfficientViTContract().reference(),
        }[self.kind]()
        reference.load_state_dict(plain.state_dict())
        reference.train(False)  # mmdet's returns None
        return reference

    def image(self, **options: torch.dtype) -> Tensor:
        """Images ``(B, 3, H, W)``."""
        batch, height, width = self.size
        generator = torch.Generator().manual_seed(self.number)
        return torch.randn(batch, 3, height, width, generator=generator, **options)

    @property
    def pads(self) -> int:
        """Pixels that images are padded to the next multiple of; 0: they are not padded."""
        if self.kind in (*WHOLE_PATCHES, *ONE_SIZE):
            return 0
        if "ViT" in self.kind or "vit" in self.kind:
            return 2 if "obile" in self.kind or "fficient" in self.kind else 16
        return self.options.get("patch_size", 4)

    def _own(self, keep: object) -> nn.Module:
        if self.kind == "LTMSwin":
            return LTMSwin(**self.options, keep=keep)
        kinds = dict(LTMViT=LTMViT, LTMMobileViT=LTMMobileViT, LTMEfficientViT=LTMEfficientViT)
        return kinds[self.kind](**self.options, keep=keep)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All maps, or the logits, of images."""
    with torch.no_grad():
        out = model(x)
    out = getattr(out, "feature_maps", out)
    return list(out) if isinstance(out, list | tuple) else [out]


@cache
def _template(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = settled(APPLIED[kind]())
    model.train(False)
    return model


def draw(number: int) -> Case:
    """The case of a number."""
    r = random.Random(number)
    case = Case(number, KINDS[number % len(KINDS)])
    family = "swin"
    for name in ("efficientvit", "mobilevit", "vit"):
        family = name if name in case.kind.lower() and family == "swin" else family
    case.options = _options(r, case.kind)
    if family == "swin":
        tokens = case.options.get("window_size", 7) ** 2
        depths = case.options.get("depths")
        if depths is None:
            depths = tuple(len(blocks) for blocks in swin_stages(_template(case.kind)))
        case.detail = r.random() < 0.5
    elif family == "vit":
        depths, tokens = (4,), 196
    elif family == "mobilevit":
        depths, tokens = (0, 0, 2, 4, 3), 64
    else:
        depths, tokens = (0, 0, 2, 2), case.options.get("window_size", 8) ** 2
    case.keep = _plan(r, depths, tokens, family != "swin", family == "efficientvit")
    case.size = _size(r, case.kind)
    return case


def _options(r: random.Random, kind: str) -> dict:
    if kind == "LTMSwin":
        depths = [r.randint(1, 3) for _ in range(r.randint(1, 4))]
        count, patch = len(depths), r.choice((2, 4, 4))
        return dict(
            embed_dims=8,
            depths=depths,
            num_heads=[r.choice((1, 2, 4)) for _ in depths],
            patch_size=patch,
            strides=[patch, *(r.choice((1, 2, 2)) for _ in depths[1:])],
            out_indices=tuple(range(count)),
            window_size=r.choice((2, 3, 4, 5, 7, 7, 8)),
            qkv_bias=r.random() < 0.7,
            patch_norm=r.random() < 0.7,
            mlp_ratio=r.choice((1, 2, 4)),
            drop_path_rate=0.0,
        )
    if kind == "LTMViT":
        pyramid = r.random() < 0.3
        wanted = dict(simple_pyramid=True) if pyramid else dict(out_indices=(0, 1, 2, 3))
        return {**test_vit.TINY, **wanted}
    if kind == "LTMMobileViT":
        return dict(arch="xxs", out_indices=(0, 1, 2, 3, 4))
    if kind == "LTMEfficientViT":
        return dict(arch="b0", window_size=r.choice((2, 3, 5, 7, 8)))
    return dict(window_size=r.choice((2, 4, 7, 8))) if kind == "timm efficientvit" else {}


def _plan(
    r: random.Random, depths: tuple[int, ...], tokens: int, falls: bool, square: bool
) -> object:
    def number() -> int | float:
        if r.random() < 0.3:
            return round(r.uniform(0.02, 1), 2)
        return r.randint(1, round(tokens**0.5)) ** 2 if square else r.randint(1, tokens)

    def stage(depth: int) -> object:
        form = r.choice(("all", "number", "blocks", "blocks")) if depth else "all"
        if form == "all":
            return None
        if form == "number":
            return number()
        counts = [number() for _ in range(depth)]
        if falls:  # a share of 1 is all of them
            counts.sort(key=lambda n: n * tokens if isinstance(n, float) else n, reverse=True)
        return tuple(counts)

    form = r.choice(("preset", "number", "stages", "stages", "stages"))
    if form == "preset":
        return r.choice(("light", "balanced", "fast"))
    return number() if form == "number" else tuple(map(stage, depths))


def _size(r: random.Random, kind: str) -> tuple[int, int, int]:
    batch = r.choice((1, 2, 2, 3))
    if kind in ONE_SIZE:
        return min(batch, 2), 224, 224
    most = 96 if kind in ("timm efficientvit", "LTMEfficientViT") else 132
    sides = [r.choice((r.randint(1, 9), r.randint(1, most), r.randint(33, most))) for _ in "HW"]
    if kind in WHOLE_PATCHES:
        sides = [-(-side // 4) * 4 for side in sides]
    return batch, sides[0], sides[1]

"""What is measured, part by part: cells in order of importance.

A part is a function of a :class:`Scale` that yields cells: a name, and what measures it and
returns figures for the JSON file. A part whose time is spent leaves out its last cells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial

import torch
from torch import nn

from ....engine.build import model_builder, named_config
from ....engine.convert import parse_keep
from ...fidelity.baselines import with_tome
from ...fidelity.compare import equal_work_pairs
from ..baselines import build_models
from ..bench import Bench
from ..flops import count_macs
from .environment import ceilings, software
from .profile import profile_regions
from .suite import run_tests

Cell = tuple[str, Callable[[], dict]]
Amps = Sequence[str | None]
AMPS: Amps = ("bf16", None, "fp16")
PLANS, OURS = ("none", "balanced", "fast"), ("none", "fast")
AGAINST = ("mmdet-swin", "timm")

# Configs by what they are; reduced ones are narrow.
CONFIGS = {
    "Swin-T": "ltm-swin-tiny",
    "Swin-S": "ltm-swin-small",
    "Swin-B": "ltm-swin-base",
    "ViT-B": "ltm-vit-base",
    "Mask R-CNN": "ltm_mm::ltm_swin_maskrcnn.py",
    "UPerNet": "ltm_mm::ltm_swin_upernet.py",
}
REDUCED = {
    "Swin-T": "ltm_mm::ltm_swin_maskrcnn_shapes.py",
    "ViT-B": "ltm_mm::ltm_vit_maskrcnn_shapes.py",
    "Mask R-CNN": "ltm_mm::ltm_swin_maskrcnn_shapes.py",
    "UPerNet": "ltm_mm::ltm_swin_upernet_shapes.py",
}


@dataclass(frozen=True)
class Scale:
    """How much is measured, and where.

    Attributes:
        device: 'cuda', or 'cpu' in a dry run.
        rounds: rounds of timing that count.
        dry_run: narrow models, small images, two batch sizes, one precision.
        deadline: when the part's time is spent, as ``time.time()`` has it.
    """

    device: str
    rounds: int
    dry_run: bool
    deadline: float

    @property
    def configs(self) -> dict[str, str]:
        """Name -> config."""
        return REDUCED if self.dry_run else CONFIGS

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return (64, 96) if self.dry_run else (height, width)

    def batches(self, *counts: int) -> Sequence[int]:
        """Images per pass, the most important first."""
        return (2,) if self.dry_run else counts

    def amps(self, amps: Amps = AMPS) -> Amps:
        """Precisions, the most important first."""
        return amps[:1] if self.dry_run else amps


def environment(scale: Scale) -> Iterator[Cell]:
    """Software, the machine's ceilings, operators per forward pass."""
    yield "software", software
    yield "ceilings", partial(ceilings, scale.device, scale.rounds, scale.dry_run)


def tests(scale: Scale) -> Iterator[Cell]:
    """``make test-gpu``."""
    yield "make test-gpu", partial(run_tests, scale.device, scale.deadline)


def backbones(scale: Scale) -> Iterator[Cell]:
    """Swin backbones beside mmdet's and timm's, as they are."""
    for name in ("Swin-T", "Swin-B", "Swin-S"):
        if name not in scale.configs:
            continue
        for batch in scale.batches(8, 1, 2):
            for amp in scale.amps():
                yield _cell(scale, name, (800, 1216), batch, amp, PLANS, AGAINST)


def compiled(scale: Scale) -> Iterator[Cell]:
    """The same compiled, in one graph per model; then replayed as CUDA graphs.

    A dry run compiles no code: Inductor's C++ for Swins may not compile (PyTorch's issue 179135).
    """
    for mode in ("aot_eager",) if scale.dry_run else ("default", "reduce-overhead"):
        for batch in scale.batches(8, 1):
            for amp in scale.amps(("bf16", None)):
                others = () if mode == "reduce-overhead" else ("mmdet-swin",)
                yield _cell(scale, "Swin-T", (800, 1216), batch, amp, OURS, others, mode=mode)


def models(scale: Scale) -> Iterator[Cell]:
    """Whole models, and a ViT beside ToMe."""
    whole = partial(_cell, scale, plans=PLANS, whole=True)
    for amp in scale.amps(("bf16", None)):
        for batch in scale.batches(8, 1):
            yield whole("Mask R-CNN", (800, 1216), batch, amp, against=AGAINST[:1])
        for batch in scale.batches(8, 1):
            yield whole("UPerNet", (512, 512), batch, amp, against=AGAINST[:1])
        for batch in scale.batches(8, 1):
            yield _cell(scale, "ViT-B", (448, 448), batch, amp, PLANS, ("timm",), tome=True)


def profile(scale: Scale) -> Iterator[Cell]:
    """Where a forward pass goes, and its longest kernels."""
    for batch in scale.batches(8, 1):
        for amp in scale.amps(("bf16", None)):
            for plan in OURS:
                title = f"Swin-T, keep={plan}, batch {batch}, {amp or 'fp32'}"
                yield title, partial(_profile, scale, plan, batch, amp)


def training(scale: Scale) -> Iterator[Cell]:
    """A training step: backbones, then a whole Mask R-CNN."""
    step = partial(_cell, scale, size=(800, 1216), batch=2, train_step=True)
    for amp in scale.amps(("bf16", None)):
        yield step("Swin-T", amp=amp, plans=PLANS, against=AGAINST)
        yield step("Mask R-CNN", amp=amp, plans=OURS, against=AGAINST[:1], whole=True)


PARTS: dict[str, Callable[[Scale], Iterator[Cell]]] = {
    part.__name__: part
    for part in (environment, tests, backbones, compiled, models, profile, training)
}


def _cell(
    scale: Scale,
    name: str,
    size: tuple[int, int],
    batch: int,
    amp: str | None,
    plans: Sequence[str],
    against: Sequence[str] = (),
    mode: str | None = None,
    whole: bool = False,
    tome: bool = False,
    train_step: bool = False,
) -> Cell:
    """A cell that is one table of rows; models take turns."""
    image = scale.size(*size)
    title = f"{name}, {image[0]} x {image[1]}, batch {batch}, {amp or 'fp32'}"
    title += f", compiled ({mode})" if mode else ""

    def measure() -> dict:
        torch._dynamo.reset()  # a graph of this size and precision
        built = _models(scale.configs[name], tuple(plans), tuple(against), image, whole, tome)
        bench = Bench(built, image, scale.device, amp, mode)
        return dict(rows=[asdict(r) for r in bench.measure(batch, scale.rounds, train_step)])

    return title, measure


@cache
def _models(
    config: str,
    plans: tuple[str, ...],
    against: tuple[str, ...],
    size: tuple[int, int],
    whole: bool,
    tome: bool,
) -> dict[str, nn.Module]:
    """Models that the cells of a part share."""
    built = build_models(config, plans, against, size, whole)
    return built | _tome(config, plans[-1], size) if tome else built


def _tome(config: str, plan: str, size: tuple[int, int]) -> dict[str, nn.Module]:
    """ToMe at no more work than a plan."""
    build, image = model_builder(named_config(config), backbone=True), torch.zeros(1, 3, *size)
    keep = parse_keep(plan)
    macs = lambda model: count_macs(model, image).total  # noqa: E731
    pairs = equal_work_pairs(lambda r: macs(with_tome(build(keep), r)), macs(build(keep)))
    return {f"ToMe, {pairs} a block": with_tome(build(keep), pairs)}


def _profile(scale: Scale, plan: str, batch: int, amp: str | None) -> dict:
    image = scale.size(800, 1216)
    built = _models(scale.configs["Swin-T"], (plan,), (), image, False, False)
    bench = Bench(built, image, scale.device, amp)
    (name,) = built
    return dict(parts=bench.parts(name, batch)) | profile_regions(bench.forward(name, batch))

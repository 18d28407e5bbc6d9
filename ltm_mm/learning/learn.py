"""``ltm_mm.learn``: learn what merging loses, for a model in memory from any library."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..adapters import apply
from ..adapters.apply import check_model
from ..adapters.copies import shared_copy
from ..adapters.families import swin_stages
from ..adapters.maps import as_images, feature_maps
from ..checkpoints.learned import Learned, sizes_of, weights_digest
from ..merging import Detail, MaskModule, merges
from ..presets import Keep
from .distill import Progress, Settings, at_least, distill, map_loss

TRAIN = ("detail", "weights", "all")
PLANS = ("light", "balanced", "fast")
PROBE = 1e-4  # size of random steps that measure how strongly the maps depend on the weights
PROBED = 4  # crops used for that
# Change of the maps by random steps of the chosen rate, as a share of merging's. Without details
# larger steps lower the loss on the photos held out, but not the disagreement on other photos.
NOISE = {"weights": 0.0005, "all": 0.005}
GENTLE = ("light", "balanced")  # plans that lose less than a detail's time is worth


@torch.inference_mode(False)  # called under it, nothing could learn
def learn(
    model: nn.Module,
    images: Iterable[Tensor],
    keep: Keep | Sequence[str] | Mapping[str, Keep] = PLANS,
    train: str | None = None,
    settings: Settings | None = None,
    progress_bar: bool = True,
) -> Learned:
    """Learn what merging loses in a model in memory: the plain model teaches the merged one.

    No labels are needed and the model is not changed. Pass the result to :func:`ltm_mm.apply` as
    ``detail``; ``save(path)`` writes it to a file.

    Args:
        model: a model that :func:`ltm_mm.apply` supports, without merging.
        images: normalised tensors ``(3, H, W)`` or ``(1, 3, H, W)``, at least two; every tenth is
            held out for validation.
        keep: one plan, or several (names, or a mapping of names to plans) that share one set of
            parameters.
        train: 'detail' (a thin block per merging Swin block, weights are frozen), 'weights' (no
            detail, no extra time), or 'all'. None: see :func:`default_train`.
        settings: steps, learning rates, crops.
        progress_bar: whether a bar shows the loss.

    Raises:
        ValueError: if an argument does not fit, or learning did not help on the images held out.
    """
    check_model(model)
    photos, held_out = hold_out(as_images(images))
    settings = settings or Settings()
    if not isinstance(settings, Settings):
        raise ValueError(f"settings must be ltm_mm.learning.Settings, got {settings!r}")
    plans = keep if isinstance(keep, Mapping) else _named(keep)

    train = train or default_train(plans, has_swin(model))
    source = model if train == "detail" else deepcopy(model)

    def build(plan: Keep) -> nn.Module:
        copy = shared_copy(source)
        if plan is not None:
            apply(copy, plan)
        copy.eval()  # which returns nothing from mmdet's Swin
        return copy

    lesson = Lesson(build, plans, train, settings.seed)
    bar = tqdm(total=settings.steps, unit="step", disable=not progress_bar)
    with bar:
        progress = lesson.learn(photos, held_out, settings, on_step=lambda p: show_progress(bar, p))
    if progress.best is None:
        raise ValueError(
            "learning did not help on the images held out: give more images, or a smaller lr"
        )
    return lesson.learned(progress)


def default_train(plans: Mapping[str, Keep], swin: bool) -> str:
    """What is trained by default, as measured in docs/fidelity.md.

    Weights trained for several plans at once are pulled towards the plan that merges most, at the
    expense of the others; one detail works for all plans. Only a Swin has one, and for plans that
    lose little its time is not worth it.
    """
    if len(plans) > 1 and swin:
        return "detail"
    gentle = any(isinstance(plan, str) and plan in GENTLE for plan in plans.values())
    return "all" if swin and not gentle else "weights"


def has_swin(model: nn.Module) -> bool:
    """Whether details can be learned for a model."""
    try:
        swin_stages(model)
    except ValueError:
        return False
    return True


def _named(keep: Keep | Sequence[str]) -> dict[str, Keep]:
    several = isinstance(keep, tuple | list) and all(isinstance(plan, str) for plan in keep)
    plans: Any = keep if several else [keep]
    return {str(plan): plan for plan in plans}


def hold_out(photos: Sequence) -> tuple[list, list]:
    """Split photos into those to learn from and every tenth, 1 to 16 in all, for validation.

    Raises:
        ValueError: for fewer than two.
    """
    if len(photos) < 2:
        raise ValueError(
            f"learning needs two photos at least, one to learn on and one to judge by, got "
            f"{len(photos)}"
        )
    count = min(max(len(photos) // 10, 1), 16)
    held_out = {k * len(photos) // count for k in range(count)}
    return (
        [photo for k, photo in enumerate(photos) if k not in held_out],
        [photo for k, photo in enumerate(photos) if k in held_out],
    )


def show_progress(bar: tqdm, progress: Progress) -> None:
    """A step on a progress bar, with the mean loss of the last ones."""
    recent = progress.losses[-20:]
    judged = list(progress.held_out.values())
    bar.update(progress.step - bar.n)
    bar.set_postfix_str(
        f"loss {sum(recent) / len(recent):.4f}, held out {judged[0]:.4f} -> {judged[-1]:.4f}",
        refresh=False,
    )


class Lesson:
    """The teacher, the students and the parameters that are trained.

    Args:
        build: builds the model with a plan, in eval mode (None: without merging); all share
            parameters.
        plans: by name.
        train: one of ``TRAIN``.
        seed: of the details' start.

    Raises:
        ValueError: if the model has nothing to learn.
    """

    def __init__(
        self, build: Callable[[Keep], nn.Module], plans: Mapping[str, Keep], train: str, seed: int
    ) -> None:
        if train not in TRAIN:
            raise ValueError(f"train must be one of {', '.join(TRAIN)}, got {train!r}")
        if not plans or any(plan is None for plan in plans.values()):
            raise ValueError("keep must name plans that merge")
        self.train, self.plans = train, plans
        self.plain = build(None)
        self.teacher = deepcopy(self.plain) if train != "detail" else self.plain
        self.students = {name: build(plan) for name, plan in plans.items()}
        self.details: dict[tuple[int, int], Detail] = {}
        if train != "weights":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for student in self.students.values():
                    self._attach(student)
        for name, student in self.students.items():
            if not merges(student):
                raise ValueError(f"the plan {name} merges nothing in this model")

    def _attach(self, student: nn.Module) -> None:
        """Give a student's merging blocks fresh details, the same modules as the others'."""
        for i, blocks in enumerate(swin_stages(student)):
            for k, (block, norms) in enumerate(blocks):
                merge = getattr(block, "merge", None)
                if isinstance(merge, MaskModule):
                    weight = norms[0].weight
                    if (i, k) not in self.details:
                        self.details[i, k] = Detail(weight.numel()).to(weight).eval()
                    merge.detail = self.details[i, k]

    def learn(
        self,
        photos: Sequence[Tensor],
        held_out: Sequence[Tensor],
        settings: Settings,
        progress: Progress | None = None,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Run :func:`.distill.distill`; ``requires_grad`` of the model's parameters is restored."""
        before = {p: p.requires_grad for m in self.students.values() for p in m.parameters()}
        try:
            groups = self._groups(photos, settings)
            return distill(
                self.teacher, self.students, groups, photos, held_out, settings, progress, on_step
            )
        finally:
            for parameter, wanted in before.items():
                parameter.requires_grad_(wanted)
                parameter.grad = None

    def _groups(self, photos: Sequence[Tensor], settings: Settings) -> list[dict]:
        """The parameters to train: details, and the weights that the maps depend on."""
        details = [p for detail in self.details.values() for p in detail.parameters()]
        weights: list[Tensor] = []
        rate = settings.lr
        if self.train != "detail":
            crop = settings.crop
            first = (at_least(photos[k], crop) for k in range(min(PROBED, len(photos))))
            some = [photo[:, :, :crop, :crop] for photo in first]
            weights = self._weights_of_maps(some[0])
            rate = rate or self.rate_of_weights(weights, torch.cat(some))
        for student in self.students.values():
            student.requires_grad_(False)
        for parameter in (*details, *weights):
            parameter.requires_grad_(True)
        groups: list[dict] = [
            dict(params=details, lr=settings.detail_lr),
            dict(params=weights, lr=rate),
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def rate_of_weights(self, weights: Sequence[Tensor], images: Tensor) -> float:
        """A learning rate of the weights that suits the network and its plans.

        One step of Adam moves every weight by about its rate. Random steps of that size also change
        the maps; the rate is chosen so that this change is a fixed share of what merging changes,
        for the plan that loses least. It varies a hundredfold between networks.
        """
        taught = feature_maps(self.teacher, images)
        lost = min(
            map_loss(feature_maps(student, images), taught).item()
            for student in self.students.values()
        )
        generator = torch.Generator().manual_seed(0)
        steps = [torch.randn(w.shape, generator=generator).sign().to(w) * PROBE for w in weights]
        before = [w.clone() for w in weights]
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step)
        moved = map_loss(feature_maps(self.plain, images), taught).item()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
        return PROBE * math.sqrt(NOISE[self.train] * lost / moved) if lost and moved else PROBE

    def _weights_of_maps(self, photo: Tensor) -> list[Tensor]:
        details = {p for detail in self.details.values() for p in detail.parameters()}
        weights: dict[Tensor, None] = {}
        with torch.enable_grad():
            for student in self.students.values():
                student.requires_grad_(True)
                maps = feature_maps(student, photo)
                sum(m.sum() for m in maps).backward()  # type: ignore[union-attr]
                weights |= {p: None for p in student.parameters() if p.grad is not None}
                student.zero_grad(set_to_none=True)
        return [p for p in weights if p not in details]

    def learned(self, progress: Progress) -> Learned:
        """The learned parameters as an object; weights under the plain model's names."""
        details = {place: deepcopy(detail) for place, detail in self.details.items()}
        weights = None
        if self.train != "detail":
            before = dict(self.teacher.named_parameters())
            weights = {
                name: p.detach().clone()
                for name, p in self.plain.named_parameters()
                if not torch.equal(p, before[name])
            }
        stages = swin_stages(self.plain) if details else ()
        widths, depths = sizes_of(stages)
        digest = weights_digest(stages) if details else ""
        history = dict(losses=progress.losses, held_out=progress.held_out)
        return Learned(details, widths, depths, digest, tuple(self.plans), weights, history)

"""The training loop: a network without merging teaches the same network with merging.

The loss is the relative squared error of the feature maps on any photos; labels are not needed.
Every step draws one of the plans, so one set of parameters works for all. Distilling a merged ViT
classifier without labels is Token Compensator's idea (ECCV 2024); dense maps, windows and the
detail are ours.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.maps import feature_maps

BACK_OFF = 0.25
DIVERGED = 1.5  # times the loss at the start; less than that at full rates is common, and harmless


@dataclass(frozen=True)
class Settings:
    """Settings of the training.

    Attributes:
        steps: optimiser steps.
        lr: learning rate of the weights; None: chosen for the network and the plans, see
            :meth:`.learn.Lesson.rate_of_weights`.
        detail_lr: learning rate of details.
        batch_size: crops per step.
        crop: side of the crops in pixels; smaller photos are scaled up.
        seed: for the crops, their order and the initial details.
        checks: how often the loss on the held-out photos is computed.
    """

    steps: int = 300
    lr: float | None = None
    detail_lr: float = 5e-3
    batch_size: int = 2
    crop: int = 320
    seed: int = 0
    checks: int = 6

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "checks"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be an int >= 1, got {getattr(self, name)!r}")
        for name in ("lr", "detail_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {rate!r}")


@dataclass
class Progress:
    """The state of a training, with everything needed to resume it.

    Attributes:
        step: steps taken.
        losses: of each step.
        held_out: steps taken -> loss on the held-out photos, averaged over the plans.
        best: the parameters with the lowest held-out loss; None: none is lower than at the start.
        parameters, optimizer, random_state: their state after the last step (the model itself ends
            with the best parameters).
        rate: current factor of the learning rates, see ``BACK_OFF``.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    best: list[Tensor] | None = None
    parameters: list[Tensor] | None = None
    optimizer: dict | None = None
    random_state: object = None
    rate: float = 1.0


def distill(
    teacher: nn.Module,
    students: Mapping[str, nn.Module],
    groups: Sequence[dict],
    photos: Sequence[Tensor],
    held_out: Sequence[Tensor],
    settings: Settings,
    progress: Progress | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train merged networks; they end with the best parameters on the held-out photos.

    If the held-out loss exceeds ``DIVERGED`` times its value at the start, the rates were too
    large: training continues from the best parameters so far, with the rates multiplied by
    ``BACK_OFF``.

    Args:
        teacher: without merging, in eval mode; not changed.
        students: by plan, in eval mode; they share their parameters.
        groups: parameter groups with their ``lr``, as for an optimiser.
        photos: normalised ``(1, 3, H, W)``, loaded on access.
        held_out: the same, for validation.
        settings: of the training.
        progress: state to resume from; None: start anew.
        on_step: called after every step. A KeyboardInterrupt ends the loop.

    Returns:
        The progress; ``best`` is None if learning did not help.

    Raises:
        FloatingPointError: if the loss is no longer finite.
    """
    progress = progress or Progress()
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    rng = random.Random(settings.seed)
    held_out_loss = _HeldOutLoss(teacher, students, held_out, settings)
    start = [p.detach().clone() for p in parameters]
    if progress.parameters is not None:
        _restore(progress, parameters, optimizer, rng)
    else:
        progress.held_out[0] = held_out_loss()
    every = max(settings.steps // settings.checks, 1)
    try:
        while progress.step < settings.steps:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * progress.rate * _schedule(progress.step, settings.steps)
            crops = draw_crops(photos, settings, rng)
            student = students[rng.choice(list(students))]
            progress.losses.append(_step(teacher, student, crops, parameters, optimizer))
            progress.step += 1
            progress.parameters = parameters
            progress.optimizer, progress.random_state = optimizer.state_dict(), rng.getstate()
            if progress.step % every == 0 or progress.step == settings.steps:
                _check(progress, held_out_loss(), parameters)
                if progress.held_out[progress.step] > DIVERGED * progress.held_out[0]:
                    _copy(progress.best or start, parameters)
                    optimizer.state.clear()
                    progress.optimizer = optimizer.state_dict()
                    progress.rate *= BACK_OFF
            on_step(progress)
    except KeyboardInterrupt:
        if progress.step and progress.step not in progress.held_out:
            _check(progress, held_out_loss(), parameters)
    progress.parameters = [p.detach().clone() for p in parameters]
    _copy(progress.best or start, parameters)
    return progress


def map_loss(maps: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """Squared error of every map over its teacher's mean square, summed."""
    pairs = zip(maps, taught, strict=True)
    return sum(((m - t).square().mean() / t.square().mean() for m, t in pairs), torch.zeros(()))


def draw_crops(photos: Sequence[Tensor], settings: Settings, rng: random.Random) -> Tensor:
    """Random crops of random photos, randomly mirrored ``(batch_size, C, crop, crop)``."""
    crops = []
    for _ in range(settings.batch_size):
        photo = at_least(photos[rng.randrange(len(photos))], settings.crop)
        top, left = (rng.randrange(side - settings.crop + 1) for side in photo.shape[2:])
        crop = photo[:, :, top : top + settings.crop, left : left + settings.crop]
        crops.append(crop.flip(3) if rng.random() < 0.5 else crop)
    return torch.cat(crops)


def at_least(photo: Tensor, side: int) -> Tensor:
    """A photo ``(1, C, H, W)``, scaled up where a side is shorter than ``side`` pixels."""
    factor = side / min(photo.shape[2:])
    if factor <= 1:
        return photo
    size = [max(round(n * factor), side) for n in photo.shape[2:]]
    return F.interpolate(photo, size, mode="bilinear", align_corners=False)


class _HeldOutLoss:
    """The loss on whole held-out photos, averaged over plans and photos."""

    def __init__(
        self,
        teacher: nn.Module,
        students: Mapping[str, nn.Module],
        photos: Sequence[Tensor],
        settings: Settings,
    ) -> None:
        self.students, self.photos = students, [at_least(p, settings.crop) for p in photos]
        with torch.no_grad():
            self.taught = [feature_maps(teacher, photo) for photo in self.photos]

    @torch.no_grad()
    def __call__(self) -> float:
        losses = [
            map_loss(feature_maps(student, photo), taught).item()
            for photo, taught in zip(self.photos, self.taught, strict=True)
            for student in self.students.values()
        ]
        return sum(losses) / len(losses)


def _step(
    teacher: nn.Module,
    student: nn.Module,
    crops: Tensor,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> float:
    with torch.no_grad():
        taught = feature_maps(teacher, crops)
    with torch.enable_grad():
        loss = map_loss(feature_maps(student, crops), taught)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}: take a smaller --lr, or fp32 weights")
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return value


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, then a cosine down to zero."""
    return min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _check(progress: Progress, loss: float, parameters: Sequence[Tensor]) -> None:
    if loss < min(progress.held_out.values()):
        progress.best = [p.detach().clone() for p in parameters]
    progress.held_out[progress.step] = loss


def _restore(
    progress: Progress,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    rng: random.Random,
) -> None:
    assert progress.parameters is not None
    _copy(progress.parameters, parameters)
    optimizer.load_state_dict(progress.optimizer)  # type: ignore[arg-type]
    rng.setstate(progress.random_state)  # type: ignore[arg-type]


def _copy(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)

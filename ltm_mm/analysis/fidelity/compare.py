"""Measure what merging would change in a model, on photos without labels."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...adapters.apply import attach, check_model
from ...adapters.copies import Size, by_size, in_our_blocks
from ...adapters.families import swin_stages
from ...adapters.maps import as_images, plain_output, run_with_maps
from ...checkpoints.learned import Learned
from ...engine.build import evaluating
from ...engine.photos import add_noise, at_size, resized, size_of
from ...merging import Detail, MaskModule, merges
from ...models.backbones.base import LTMBackbone
from ...models.backbones.global_blocks import GlobalBlocks
from ...presets import Keep
from ..benchmark.equal_time import equal_time_size, smaller_sizes
from ..benchmark.flops import count_macs
from ..benchmark.latency import Clock, interleave
from ..benchmark.latency import threads as use_threads
from ..benchmark.report import machine
from .agreement import Tally, decide, relative_error, tally_of
from .baselines import pooled, with_tome
from .report import Fidelity, FidelityRow

BASELINES = ("image", "pooling", "tome", "jpeg")
QUALITIES = (98, 90, 75)  # of photos that are saved again as JPEG
NOISE = 1e-4  # standard deviations of the pixels
STEADY = ("plain", "plan", "learned")  # rows that are also run with noise
NOISY_PHOTOS = 8  # how many are run again with noise
PRESETS = ("light", "balanced", "fast")
Predict = Callable[[nn.Module, Any], object]
PredictionCallback = Callable[[FidelityRow, int, Any], None]


@dataclass(frozen=True)
class LearnedPlan:
    """A plan with what was learned for it, instead of a plan alone."""

    keep: Keep
    learned: Learned


@dataclass
class ModelUnderTest:
    """A model, how to build it with any plan, and how to use it.

    Attributes:
        plain: the model as it is given, in eval mode.
        build: the same with a merging plan; None: with nothing merged, in the same blocks.
        predict: gets model and image; see :func:`fidelity`.
        maps: see :func:`.models.run_with_maps`.
        timed: the model and the image that times are taken with; None: itself, the first photo.
        saved: an image as it is after it was saved as JPEG of a quality; None: not known.
    """

    plain: nn.Module
    build: Callable[[Any], nn.Module]
    predict: Predict
    maps: Callable[[nn.Module, Any], Sequence[Tensor]] | None = None
    timed: "tuple[ModelUnderTest, Any] | None" = None
    saved: Callable[[Any, int], Any] | None = None


@dataclass
class Candidate:
    """A model to compare, the one that is timed, and what becomes of the image before it."""

    row: FidelityRow
    model: Callable[[Size], nn.Module]
    timed: Callable[[Size], nn.Module]
    share: tuple[float, float] = (1.0, 1.0)
    quality: int | None = None  # of the JPEG that the image is saved as

    def size(self, whole: Size) -> Size:
        """What becomes of an image of a size: the nearest in area of those in whole steps."""
        area = whole[0] * whole[1] * self.share[0] * self.share[1]
        return min(smaller_sizes(whole), key=lambda size: abs(size[0] * size[1] - area))


def fidelity(
    model: nn.Module,
    images: Iterable[Tensor],
    keep: Keep | Sequence[Keep] | Mapping[str, Keep | LearnedPlan] = PRESETS,
    predict: Callable[[nn.Module, Tensor], object] | None = None,
    maps: Callable[[nn.Module, Tensor], Sequence[Tensor]] | None = None,
    baselines: Sequence[str] = BASELINES,
    rounds: int = 5,
    threads: int | None = None,
    watch: PredictionCallback | None = None,
    progress: bool = True,
    clock: Clock = time.perf_counter,
    timed: tuple[Callable[[Keep], nn.Module], Tensor] | None = None,
    saved: Callable[[Tensor, int], Tensor] | None = None,
) -> Fidelity:
    """Measure what merging would change in a model: error, agreement, MACs and time.

    The model itself is not changed. Times are those of ``predict`` on the first image; their
    reference is the model in our blocks without merging.

    Args:
        model: a built model that :func:`ltm_mm.apply` supports, without merging.
        images: ``(3, H, W)`` or ``(1, 3, H, W)``, normalised.
        keep: the plans, each as for ``ltm_mm.apply`` or a :class:`LearnedPlan`; a mapping names
            them. A name or a number is a single plan.
        predict: gets a model and an image and returns logits ``(1, classes)`` or ``(1, classes,
            H, W)``, a NumPy array of classes, or :class:`ltm_mm.visualization.predictions
            .Instances`; its time is measured. None: calls the model.
        maps: gets a model and an image and returns the maps to compare; None: the backbone's.
        baselines: 'image' (the plain model on a smaller image of equal time), 'pooling' (as many
            merged tokens, grouped by position), 'tome' (ToMe at equal MACs; ViT only) and 'jpeg'
            (see ``saved``).
        rounds: timed rounds; 0: no timing, and no smaller image.
        threads: CPU threads; None: unchanged.
        watch: called with each row, the image's index and the prediction (classes, label map or
            instances), e.g. to compare it with labels; may fill ``row.metrics``.
        progress: whether to show progress.
        clock: returns seconds; use ``time.process_time`` (with one thread) on a shared machine.
        timed: a function that builds another model with as many blocks for a plan (None: without
            merging), and an image: times, and the scale of the smaller image, are those of that
            model. This measures the error on a small trained network and the time of a large one.
            None: ``model``.
        saved: gets an image and a quality, and returns the image after saving it as JPEG, a
            baseline for comparison. None: no such baseline.

    Returns:
        One row per model; ``print(found.table())`` shows them.

    Raises:
        ValueError: if the model, a plan or a baseline does not fit; the message states what is
            allowed.
    """
    tested = ModelUnderTest(
        model,
        lambda plan: with_plan(model, plan),
        predict or (lambda model, image: model(image)),
        maps,
        None if timed is None else (_stand_in(timed[0]), timed[1]),
        saved,
    )
    if keep is None or isinstance(keep, str | int | float):
        keep = [keep]
    baselines = (baselines,) if isinstance(baselines, str) else baselines
    plans = keep if isinstance(keep, Mapping) else {str(plan): plan for plan in keep}
    check_model(model)
    images = as_images(images)
    if not images:
        raise ValueError("images must hold at least one tensor (1, 3, H, W)")
    with evaluating(model), use_threads(threads):
        return compare(tested, images, plans, baselines, rounds, watch, progress, clock)


@torch.no_grad()
def compare(
    tested: ModelUnderTest,
    images: Sequence[Any],
    plans: Mapping[str, Keep | LearnedPlan],
    baselines: Sequence[str] = BASELINES,
    rounds: int = 5,
    watch: PredictionCallback | None = None,
    progress: bool = True,
    clock: Clock = time.perf_counter,
) -> Fidelity:
    """As :func:`fidelity`, of a model in any form."""
    if type(rounds) is not int or rounds < 0:
        raise ValueError(f"rounds must be an int >= 0, got {rounds!r}")
    unknown = sorted({*baselines} - {*BASELINES})
    if unknown:
        raise ValueError(f"baselines must be of {', '.join(BASELINES)}, got {unknown[0]!r}")
    candidates = _candidates(tested, images[0], plans, baselines)
    no_faster: list[str] = []
    if rounds:
        if "image" in baselines:
            candidates, no_faster = _with_smaller_images(
                tested, images[0], candidates, rounds, clock
            )
        _measure_time(*(tested.timed or (tested, images[0])), candidates, rounds, clock, progress)
    with tqdm(total=len(images) * len(candidates), unit="pass", disable=not progress) as bar:
        _measure_fidelity(tested, images, candidates, watch or (lambda *_: None), bar)
    metadata = machine() | dict(photos=len(images), size=size_of(images[0]))
    return Fidelity([c.row for c in candidates], metadata, no_faster)


def with_plan(model: nn.Module, plan: Keep | LearnedPlan) -> nn.Module:
    """A copy of a plain model that merges, and has what was learned."""
    if not isinstance(plan, LearnedPlan):
        return in_our_blocks(model, plan)
    copy = in_our_blocks(deepcopy(model) if plan.learned.weights else model, plan.keep)
    attach(copy, plan.learned)
    return copy


def _stand_in(build: Callable[[Keep], nn.Module]) -> ModelUnderTest:
    """A backbone that is only timed; details take the same time whatever they hold."""

    def build_detailed(plan: Keep | LearnedPlan) -> nn.Module:
        if not isinstance(plan, LearnedPlan):
            return build(plan)
        model = build(plan.keep)
        for block, norms in (pair for stage in swin_stages(model) for pair in stage):
            if plan.learned.details and isinstance(block.merge, MaskModule):
                block.merge.detail = Detail(norms[0].weight.numel()).eval()
        return model

    return ModelUnderTest(build(None), build_detailed, lambda m, x: m(x))


def _candidates(
    tested: ModelUnderTest,
    image: Any,
    plans: Mapping[str, Keep | LearnedPlan],
    baselines: Sequence[str],
) -> list[Candidate]:
    """The plain model, and every plan with the baselines that need no timing."""
    timed = (tested.timed or (tested,))[0]
    candidates = [Candidate(FidelityRow("plain"), by_size(tested.plain), by_size(timed.plain))]
    if not any(isinstance(m, LTMBackbone) for m in tested.plain.modules()):
        model, other = (by_size(one.build(None)) for one in (tested, timed))
        candidates.append(Candidate(FidelityRow("plain, our blocks"), model, other))
    for name, keep in plans.items():
        if not isinstance(keep, LearnedPlan) and not merges(tested.build(keep)):
            raise ValueError(f"keep={keep!r} merges nothing in this model")

        def add(
            row: FidelityRow, change: Callable[[nn.Module], nn.Module], keep: Any = keep
        ) -> None:
            model = change(tested.build(keep))
            other = model if timed is tested else change(timed.build(keep))
            candidates.append(Candidate(row, lambda size: model, lambda size: other))

        if isinstance(keep, LearnedPlan):
            add(FidelityRow(name, "learned", name), lambda model: model)
            continue
        add(FidelityRow(name, "plan", name), lambda model: model)
        if "pooling" in baselines:
            add(FidelityRow("pooling", "pooling", name), pooled)
        if "tome" in baselines and _global_blocks(tested.build(keep)) == 1:
            macs = _macs(tested, tested.build(keep), image)
            pairs = equal_work_pairs(partial(_tome_macs, tested, keep, image), macs)
            row = FidelityRow(f"ToMe, {pairs} a block", "tome", name)
            add(row, partial(with_tome, pairs=pairs))
    if "jpeg" in baselines and tested.saved is not None:
        reference = _reference(candidates)
        for quality in QUALITIES:
            row = FidelityRow(f"photo saved as JPEG, quality {quality}", "jpeg")
            candidates.append(Candidate(row, reference.model, reference.timed, quality=quality))
    size = size_of(image)
    for candidate in candidates:
        candidate.row.macs = _macs(tested, candidate.model(size), image)
    return candidates


def _global_blocks(model: nn.Module) -> int:
    return sum(isinstance(m, GlobalBlocks) for m in model.modules())


def _macs(tested: ModelUnderTest, model: nn.Module, image: Any) -> int:
    forward = lambda: tested.predict(model, image)  # noqa: E731
    return count_macs(model, torch.empty(0), forward).total


def _tome_macs(tested: ModelUnderTest, keep: Keep, image: Any, pairs: int) -> int:
    return _macs(tested, with_tome(tested.build(keep), pairs), image)


def equal_work_pairs(macs: Callable[[int], int], wanted: int, most: int = 4096) -> int:
    """The least number of pairs per block with which ToMe's work is no more than wanted."""
    low, high = 0, 1
    while high < most and macs(high) > wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if macs(middle) <= wanted else (middle, high)
    return high


def _with_smaller_images(
    tested: ModelUnderTest,
    image: Any,
    candidates: Sequence[Candidate],
    rounds: int,
    clock: Clock,
) -> tuple[list[Candidate], list[str]]:
    """The plain model on an image so small that it takes as long, behind every plan.

    Returns:
        The candidates; names of the plans that take no less time than plain on the whole image.
    """
    timed, shown = tested.timed or (tested, image)
    whole, plain = size_of(shown), _reference(candidates)
    resize = lru_cache(partial(at_size, shown))
    with_images, no_faster = [], []
    for candidate in candidates:
        with_images.append(candidate)
        if candidate.row.kind != "plan":
            continue
        size = equal_time_size(
            whole,
            lambda size: timed.predict(plain.timed(size), resize(size)),
            partial(timed.predict, candidate.timed(whole), shown),
            clock,
            rounds,
        )
        share = (size[0] / whole[0], size[1] / whole[1])
        row = FidelityRow("", "image", candidate.row.name)
        smaller = Candidate(row, plain.model, plain.timed, share)
        new_size = smaller.size(size_of(image))
        if new_size == size_of(image):
            no_faster.append(candidate.row.name)
            continue
        row.name = f"image of {new_size[0]} x {new_size[1]}"
        row.macs = _macs(tested, plain.model(new_size), at_size(image, new_size))
        with_images.append(smaller)
    return with_images, no_faster


def _reference(candidates: Sequence[Candidate]) -> Candidate:
    """The plain model in the blocks that merging runs in."""
    return [c for c in candidates if c.row.kind == "plain"][-1]


def _measure_time(
    tested: ModelUnderTest,
    image: Any,
    candidates: Sequence[Candidate],
    rounds: int,
    clock: Clock,
    progress: bool,
) -> None:
    """Seconds of every candidate in turn, on an image that is made ready beforehand."""
    runs = {}
    timed = [candidate for candidate in candidates if candidate.quality is None]
    for number, candidate in enumerate(timed):
        size = candidate.size(size_of(image))
        runs[str(number)] = _run(tested, candidate.timed(size), at_size(image, size))
    with tqdm(total=(rounds + 2) * len(runs), desc="time", unit="run", disable=not progress) as bar:
        seconds = interleave(runs, rounds, 2, clock, lambda _: bar.update())
    for candidate, taken in zip(timed, seconds.values(), strict=True):
        candidate.row.seconds = taken
    for candidate in candidates:  # the plain model on other pixels
        candidate.row.seconds = candidate.row.seconds or _reference(candidates).row.seconds


def _run(tested: ModelUnderTest, model: nn.Module, image: Any) -> Callable[[], None]:
    cuda = next(model.parameters()).is_cuda

    def run() -> None:
        tested.predict(model, image)
        if cuda:
            torch.cuda.synchronize()

    return run


def _measure_fidelity(
    tested: ModelUnderTest,
    images: Sequence[Any],
    candidates: Sequence[Candidate],
    watch: PredictionCallback,
    bar: tqdm,
) -> None:
    """Errors and agreement, photo by photo."""
    errors: list[list[list[float]]] = [[] for _ in candidates]
    tallies: list[Tally | None] = [None for _ in candidates]
    steady: list[Tally | None] = [None for _ in candidates]
    for place, image in enumerate(images):
        whole = size_of(image)
        for number, candidate in enumerate(candidates):
            size = candidate.size(whole)
            shown = at_size(image, size)
            if candidate.quality is not None and tested.saved is not None:
                shown = tested.saved(shown, candidate.quality)
            model = candidate.model(size)
            out, maps = run_with_maps(model, shown, tested.predict, tested.maps)
            if number == 0:
                plain, plain_maps = out, maps
            errors[number].append(map_errors(plain_maps, maps))
            if plain is not None:
                true, other = decide(plain, plain), decide(out, plain)
                tally = tallies[number] = tallies[number] or tally_of(true)
                tally.add(true, other)
                watch(candidate.row, place, other)
                if candidate.row.kind in STEADY and place < NOISY_PHOTOS:
                    again = tested.predict(model, add_noise(shown, NOISE))
                    tally = steady[number] = steady[number] or tally_of(true)
                    tally.add(other, decide(plain_output(again), plain))
            bar.update()
    for candidate, of_photos, agreed, held in zip(candidates, errors, tallies, steady, strict=True):
        candidate.row.errors = [sum(one) / len(one) for one in zip(*of_photos, strict=True)]
        candidate.row.agreement = {} if agreed is None else agreed.measures()
        if held is not None:
            candidate.row.steadiness = next(iter(held.measures().values()))


def map_errors(plain: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """Relative error of each map ``(B, C, h, w)``, resized to the plain one's size.

    NaN for all where a model that tiles an image has cut other tiles.
    """
    if len(plain) != len(other):
        return [float("nan")] * len(plain)
    return [relative_error(p, resized(o, p.shape[2:])) for p, o in zip(plain, other, strict=True)]

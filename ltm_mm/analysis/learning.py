"""What ``tools/learn.py`` does: learn on photos, judge on those held out, write the file."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints.detect import META
from ..checkpoints.learned import Learned, save_whole
from ..checkpoints.optional import print_log
from ..checkpoints.read import read_file, read_state_dict
from ..checks.options import check_counts
from ..checks.outputs import check_file
from ..engine.build import model_builder, named_config, scope_of
from ..engine.config import change_config
from ..engine.convert import parse_keep
from ..engine.photos import find_images, read_photos, train_images
from ..errors import UserError, naming, swapped_argument
from ..learning import Progress, Settings
from ..learning.learn import Lesson, default_train, has_swin, hold_out, show_progress
from ..presets import Keep
from .benchmark.latency import threads as use_threads
from .fidelity.compare import LearnedPlan, compare
from .fidelity.report import Fidelity
from .fidelity.tool import model_under_test

if TYPE_CHECKING:
    from mmengine.config import Config

SAVE_EVERY = 25  # steps between two saves of what --resume goes on from
KEPT_PHOTOS = 256  # read photos that stay in memory


class Photos(Sequence):
    """Photos as a config's backbone takes them, read when asked for ``(1, 3, H, W)``.

    Args:
        cfg: of the model.
        files: the photos.
        device: where they go.
    """

    def __init__(self, cfg: "Config", files: Sequence[Path], device: str) -> None:
        self.cfg, self.files, self.device = cfg, list(files), device
        self._read = lru_cache(maxsize=KEPT_PHOTOS)(self._read_one)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        """The photo, or the next one that can be read."""
        while True:
            file = self.files[index % len(self.files)]
            try:
                return self._read(file)
            except UserError as error:
                self.files.remove(file)
                print_log(f"{error}; it is left out", "current", logging.WARNING)
                if not self.files:
                    which = "of those to learn from, or of those held out, none can be read"
                    raise UserError(f"{error}; {which}") from error

    def __iter__(self) -> Iterator[Tensor]:
        for file in list(self.files):
            if file in self.files:
                yield self[self.files.index(file)]

    def _read_one(self, file: Path) -> Tensor:
        (photo,) = read_photos(self.cfg, [file], None, self.device, backbone=True)
        assert isinstance(photo, Tensor)
        return photo


def run_learning(
    config: str,
    checkpoint: str,
    photos: str | None,
    out: str,
    ltm: Sequence[str] = ("light", "balanced", "fast"),
    train: str | None = None,
    steps: int = 300,
    lr: float | None = None,
    batch_size: int = 2,
    crop: int = 320,
    seed: int = 0,
    resume: bool = False,
    rounds: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    trust_checkpoint: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
) -> Fidelity:
    """Learn what merging loses, print what it is worth on photos held out, write the file.

    Args:
        config: a detector's, segmentor's or classifier's that ``--ltm`` takes.
        checkpoint: the trained model's.
        photos: a folder; None: the images of the config's train set.
        out: the file. With weights it is an ordinary checkpoint, else it holds details.
        ltm: plans, which share what is learned.
        train: 'detail', 'weights' or 'all', see :func:`ltm_mm.learn`; None: see
            :func:`.learn.default_train`.
        steps, lr, batch_size, crop, seed: see :class:`ltm_mm.learning.Settings`.
        resume: go on from ``OUT.resume``.
        rounds: of timing, for the table; 0: no time.
        threads, device, trust_checkpoint, cfg_options: as for ``tools/fidelity.py``.

    Returns:
        The table: plain, and every plan without and with what was learned.

    Raises:
        UserError: for a mistake in the input.
        SystemExit: with 1 where learning did not help; nothing is written then.
    """
    counts = {"--steps": steps, "--batch-size": batch_size, "--crop": crop, "--threads": threads}
    check_counts(counts)
    if rounds < 0:
        raise UserError(f"--rounds must be 0 (no timing) or more, got {rounds}")
    check_file("--out", out, config, checkpoint)
    if swapped := swapped_argument(out, "checkpoint"):
        raise UserError(f"--out: {swapped}")
    plans = {text: parse_keep(text) for text in ltm}
    if None in plans.values():
        raise UserError("--ltm none: there is nothing to learn without merging; name plans")
    settings = _settings(steps, lr, batch_size, crop, seed)
    cfg = change_config(named_config(config), cfg_options or {})
    files = find_images(photos) if photos else train_images(cfg)
    if len(files) < 2:
        raise UserError(
            f"{photos or 'the train set'} holds one photo: learning needs two at least, one to "
            "learn on and one to judge by"
        )
    with naming(checkpoint):
        if getattr(read_state_dict(checkpoint, trust_checkpoint), "learned", False):
            raise UserError(
                f"{checkpoint} holds weights that learned with merging on, and the network without "
                "merging is to teach: give the checkpoint that they were learned from"
            )
    options: dict[str, Any] = dict(trust=trust_checkpoint, device=device)
    with scope_of(cfg), use_threads(threads):
        build = model_builder(cfg, checkpoint, **options)
        train = train or default_train(plans, has_swin(build(None)))
        print(f"learns: {train}", flush=True)
        lesson = Lesson(build, plans, train, seed)
        learn_from, judge_by = hold_out(files)
        held_out = list(Photos(cfg, judge_by, device))
        resume_file = Path(f"{out}.resume")
        setup = dict(plans=list(plans), train=train, photos=len(files), **asdict(settings))
        progress = _resumed(resume_file, setup) if resume else None
        progress = _learn(
            lesson,
            Photos(cfg, learn_from, device),
            held_out,
            settings,
            progress,
            resume_file,
            setup,
        )
        if progress.best is None:
            _refuse(progress, out)
        learned = lesson.learned(progress)
        original = model_builder(cfg, checkpoint, **options)
        fidelity = _measure_learned(
            cfg, original, lesson, learned, read_photos(cfg, judge_by, None, device), plans, rounds
        )
    print(f"\n{fidelity.table()}\n", flush=True)
    _write(learned, lesson, checkpoint, trust_checkpoint, out)
    resume_file.unlink(missing_ok=True)
    files_written = fidelity.save(Path(out).with_suffix(""))
    print("\n".join(f"  {file}" for file in (out, *files_written)))
    print(_next(config, checkpoint, out, ltm[-1], train))
    return fidelity


def _settings(steps: int, lr: float | None, batch_size: int, crop: int, seed: int) -> Settings:
    options = dict(steps=steps, batch_size=batch_size, crop=crop, seed=seed)
    if lr is not None:
        options["lr"] = lr  # type: ignore[assignment]
    try:
        return Settings(**options)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _learn(
    lesson: Lesson,
    photos: Photos,
    held_out: list[Tensor],
    settings: Settings,
    progress: Progress | None,
    resume_file: Path,
    setup: Mapping[str, Any],
) -> Progress:
    bar = tqdm(total=settings.steps, initial=progress.step if progress else 0, unit="step")

    def on_step(now: Progress) -> None:
        show_progress(bar, now)
        if now.step % SAVE_EVERY == 0 and now.step < settings.steps:
            save_whole(dict(setup=dict(setup), progress=vars(now)), resume_file)

    with bar:
        progress = lesson.learn(photos, held_out, settings, progress, on_step)
    if progress.step < settings.steps:
        print(
            f"interrupted after {progress.step} of {settings.steps} steps: the best so far is kept"
        )
    return progress


def _resumed(resume_file: Path, setup: Mapping[str, Any]) -> Progress | None:
    """The progress of an interrupted run of the same settings."""
    if not resume_file.is_file():
        print_log(f"{resume_file} does not exist: learning starts anew", "current", logging.WARNING)
        return None
    with naming(str(resume_file)):
        content = read_file(resume_file)
    if not isinstance(content, Mapping) or not {"setup", "progress"} <= content.keys():
        raise UserError(f"{resume_file} was not written by tools/learn.py: leave --resume out")
    saved = content["setup"]
    wrong = [key for key, value in setup.items() if saved.get(key) != value]
    if wrong:
        raise UserError(
            f"{resume_file} was written with another {wrong[0]} ({saved.get(wrong[0])}): give the "
            "same options to go on, or leave --resume out to start anew"
        )
    return Progress(**content["progress"])


def _refuse(progress: Progress, out: str) -> None:
    """End with 1: what was learned is not better than what was there."""
    if not progress.step:
        raise UserError(f"interrupted before the first step: {out} was not written")
    judged = list(progress.held_out.values())
    raise UserError(
        f"learning did not help: the loss on the photos held out went from {judged[0]:.4f} to "
        f"{min(judged[1:]):.4f} at best, so {out} was not written; give more photos or steps, or a "
        "smaller --lr"
    )


def _measure_learned(
    cfg: "Config",
    original: Callable[[Keep], nn.Module],
    lesson: Lesson,
    learned: Learned,
    images: Sequence,
    plans: Mapping[str, Keep],
    rounds: int,
) -> Fidelity:
    """Plain, and every plan without and with what was learned, on the photos held out."""
    by_plan = {name: lesson.students[name] for name in plans}

    def build(plan: object) -> nn.Module:
        if isinstance(plan, LearnedPlan):
            return by_plan[next(n for n, keep in plans.items() if keep == plan.keep)]
        return original(plan)  # type: ignore[arg-type]

    compared: dict[str, Any] = {}
    for name, keep in plans.items():
        compared |= {name: keep, f"{name}, learned": LearnedPlan(keep, learned)}
    tested = model_under_test(cfg, build)
    return compare(tested, images, compared, (), rounds)  # type: ignore[arg-type]


def _write(learned: Learned, lesson: Lesson, checkpoint: str, trust: bool, out: str) -> None:
    """Details alone, or the checkpoint with what has learned in the place of what was there."""
    if learned.weights is None:
        learned.save(out)
        return
    state: dict[str, Tensor] = {}
    for model in (lesson.plain, *lesson.students.values()):
        state |= {name: value.detach().cpu() for name, value in model.state_dict().items()}
    content = learned.as_checkpoint(state)
    before = read_file(checkpoint, trust)
    if isinstance(before, dict) and isinstance(before.get("meta"), dict):
        content["meta"] = {**before["meta"], META: content["meta"][META]}
    save_whole(content, out)


def _next(config: str, checkpoint: str, out: str, plan: str, train: str) -> str:
    """The command that tests it."""
    files = (
        f"{checkpoint} --ltm {plan} --detail {out}" if train == "detail" else f"{out} --ltm {plan}"
    )
    return f"test it:\n  python tools/test.py {config} {files}"

"""The steps of a run: lengths that make sense, a first one that works, losses that are numbers."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from .errors import UserError, explain, message

EVERY = 10  # steps from one look at the loss to the next: each waits for the GPU


def check_lengths(cfg: Config) -> None:
    """Refuse a training of no steps, intervals and milestones that are never reached, and a
    validation that is set up by half.

    Raises:
        UserError: names the option.
    """
    for key in ("max_epochs", "max_iters", "val_interval"):
        if cfg.train_cfg.get(key) is not None:
            _check_count(f"train_cfg.{key}", cfg.train_cfg[key])
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if isinstance(hook, Mapping) and "interval" in hook:
            last_only = name == "checkpoint" and hook["interval"] == -1  # mmengine's own default
            if not last_only:
                _check_count(f"default_hooks.{name}.interval", hook["interval"])
    _check_milestones(cfg.get("param_scheduler"), "param_scheduler")
    for split in ("val", "test"):
        names = [f"{split}_{part}" for part in ("dataloader", "cfg", "evaluator")]
        lacking = [name for name in names if cfg.get(name) is None]
        if 0 < len(lacking) < 3:
            raise UserError(
                f"{', '.join(names)}: give all three, or None for all three; {lacking[0]} is None"
            )


def _check_count(option: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{option} must be an integer >= 1, got {value!r}")


def _check_milestones(schedule: object, path: str) -> None:
    """mmengine takes a text for its letters, which no step is equal to, and any order."""
    if isinstance(schedule, Mapping) and "milestones" in schedule:
        steps = schedule["milestones"]
        numbers = isinstance(steps, (list, tuple)) and all(type(s) is int and s >= 0 for s in steps)
        if not numbers or list(steps) != sorted(set(steps)):
            raise UserError(
                f"{path}.milestones must be a list of ascending integers, such as [8, 11], got "
                f"{steps!r}"
            )
    elif isinstance(schedule, Mapping):
        for key, part in schedule.items():
            _check_milestones(part, f"{path}.{key}")
    elif isinstance(schedule, (list, tuple)):
        for index, part in enumerate(schedule):
            _check_milestones(part, f"{path}.{index}")


class Watch(Hook):
    """Knows whether a first step was taken, and ends a training whose loss is no number.

    A single step may overflow with mixed precision; twice in a row it is no accident.
    """

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.steps = 0
        self.lost = 0  # looks in a row at a loss that is no number
        self.loss: Tensor | None = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Look at the loss now and then."""
        self.steps += 1
        self.loss = (outputs or {}).get("loss")
        if self.steps % EVERY == 0:
            self.lost = self.lost + 1 if self._lost() else 0
            if self.lost > 1:
                self._end(runner)

    def after_test_iter(self, *args: object, **kwargs: object) -> None:
        """Count."""
        self.steps += 1

    def after_train(self, runner: Runner) -> None:
        """Look at the last loss."""
        if self._lost():
            self._end(runner)

    def _lost(self) -> bool:
        return isinstance(self.loss, Tensor) and not torch.isfinite(self.loss.detach()).all()

    def _end(self, runner: Runner) -> None:
        raise UserError(
            f"the loss is {float(self.loss):g} at step {runner.iter}: training diverged; lower "  # type: ignore[arg-type]
            "optim_wrapper.optimizer.lr, warm up for longer, or set optim_wrapper.clip_grad"
        )


@contextmanager
def first_step(watch: Watch) -> Iterator[None]:
    """Say in a line why a model cannot take its first step: its parts do not fit.

    Raises:
        UserError: names the module. Errors of later steps are defects and pass.
    """
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        module = _module(error)
        if watch.steps or module is None or explain(error) is not None:
            raise
        if isinstance(error, ValueError) and _ours(error):  # which says all there is to say
            raise UserError(message(error)) from error
        last = traceback.extract_tb(error.__traceback__)[-1].line
        raise UserError(
            f"the model fails in its first step, in {module}: {message(error) or last} "
            "(--debug shows where)"
        ) from error


def _module(error: BaseException) -> str | None:
    """The innermost module, other than PyTorch's own, that was running."""
    found, tb = None, error.__traceback__
    while tb is not None:
        own = tb.tb_frame.f_locals.get("self")
        if isinstance(own, nn.Module) and not type(own).__module__.startswith("torch."):
            found = type(own).__name__
        tb = tb.tb_next
    return found


def _ours(error: BaseException) -> bool:
    """Whether code of this package raised an error."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and str(tb.tb_frame.f_globals.get("__name__")).startswith("ltm_mm.")

"""The steps of a run: a first one that works, losses that are numbers."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UserError, explain, frames, message

EVERY = 10  # steps between checks of the loss: each waits for the GPU


class LossMonitor(Hook):
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
def first_step(runner: Runner) -> Iterator[None]:
    """Say in a line why a model cannot take its first step: its parts do not fit.

    Registers a :class:`LossMonitor`.

    Raises:
        UserError: names the module. Errors of later steps are defects and pass.
    """
    monitor = LossMonitor()
    runner.register_hook(monitor)
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        if monitor.steps or explain(error) is not None:
            raise
        module, hook = _module(error), _hook(error)
        if module is None and hook is None:
            raise
        if module is None:
            raise UserError(f"{hook}: {message(error)} (--debug shows where)") from error
        if isinstance(error, ValueError) and _ours(error):  # which says all there is to say
            raise UserError(message(error)) from error
        last = traceback.extract_tb(error.__traceback__)[-1].line
        raise UserError(
            f"the model fails in its first step, in {module}: {message(error) or last} "
            "(--debug shows where)"
        ) from error


def _module(error: BaseException) -> str | None:
    """The innermost module, other than PyTorch's own, that was running."""
    modules = [type(m) for f in frames(error) if isinstance(m := f.f_locals.get("self"), nn.Module)]
    others = [cls.__name__ for cls in modules if not cls.__module__.startswith("torch.")]
    return others[-1] if others else None


def _hook(error: BaseException) -> str | None:
    """The hook of the config that failed, before the first step."""
    held = [f.f_locals.get(name) for f in frames(error) for name in ("self", "hook")]
    hooks = [type(value) for value in held if isinstance(value, Hook)]
    return hooks[-1].__name__ if hooks else None


def _ours(error: BaseException) -> bool:
    """Whether code of this package raised an error."""
    return str(frames(error)[-1].f_globals.get("__name__")).startswith("ltm_mm.")

"""Hooks that the tools add to a run."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints import load_into
from ..errors import naming


class StartFrom(Hook):
    """Load a checkpoint into the model after it was initialised, before the first step."""

    def __init__(self, checkpoint: str, trust: bool) -> None:
        self.checkpoint = checkpoint
        self.trust = trust

    def before_train(self, runner: Runner) -> None:
        """Load it."""
        load(runner, self.checkpoint, self.trust)


def load(runner: Runner, checkpoint: str, trust: bool, strict: bool = False) -> None:
    """Load a checkpoint into a runner's model; see :func:`ltm_mm.checkpoints.load_into`.

    Raises:
        UserError: it does not fit or cannot be read.
    """
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    if runner.cfg.model.get("module"):
        model = model.module  # inside test-time augmentation
    with naming(checkpoint):
        load_into(model, checkpoint, trust=trust, strict=strict)

"""A checkpoint's weights into a runner's model."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints import load_into
from ..errors import UserError, naming
from .flexible import is_flexible
from .resume import check_same_model


class StartFrom(Hook):
    """Load a checkpoint into the model after it was initialised, before the first step."""

    def __init__(self, checkpoint: str, trust: bool) -> None:
        self.checkpoint = checkpoint
        self.trust = trust

    def before_train(self, runner: Runner) -> None:
        """Load it."""
        _start_from(runner, self.checkpoint, self.trust)


def load_weights(runner: Runner, checkpoint: str, trust: bool, strict: bool = False) -> None:
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


def load_start(runner: Runner, resumed: str | None, trust: bool) -> None:
    """Have a training start from its config's ``load_from``, or check the one that it goes on from.

    mmengine's own loading would leave out what does not fit with a warning among others.

    Args:
        runner: with its model built.
        resumed: what mmengine will resume from, weights and all.
        trust: see :func:`ltm_mm.checkpoints.read_state_dict`.

    Raises:
        UserError: it is of another model, or cannot be read.
    """
    if resumed:
        check_same_model(runner.model, resumed, trust, runner.cfg)
        return
    checkpoint, runner._load_from = runner._load_from, None
    if checkpoint and is_flexible(runner.cfg):  # before FSDP spreads the weights
        runner.model.init_weights()
        _start_from(runner, checkpoint, trust)
    elif checkpoint:
        runner.register_hook(StartFrom(checkpoint, trust))


def _start_from(runner: Runner, checkpoint: str, trust: bool) -> None:
    try:
        load_weights(runner, checkpoint, trust)
    except UserError as error:
        if not isinstance(error.__cause__, ConnectionError):
            raise
        raise UserError(
            f"{error}: --checkpoint FILE, or start without these weights, "
            "--cfg-options load_from=None"
        ) from error

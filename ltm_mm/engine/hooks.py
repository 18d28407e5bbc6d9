"""Hooks that the tools add to a run."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..checkpoints import load_into
from .errors import UserError


class StartFrom(Hook):
    """Load a checkpoint into the model after it was initialised, before the first step."""

    def __init__(self, checkpoint: str, trust: bool) -> None:
        self.checkpoint = checkpoint
        self.trust = trust

    def before_train(self, runner: Runner) -> None:
        """Load it."""
        load(runner, self.checkpoint, self.trust)


class SegPictures(Hook):
    """Write mmseg's drawing of every test image into a folder under the image's own name.

    mmseg's own hook can only write into its visualizer's log, under other names.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw ground truth and prediction side by side."""
        for sample in outputs or ():
            image = mmcv.imfrombytes(get(sample.img_path), channel_order="rgb")
            name = Path(sample.img_path).name
            runner.visualizer.add_datasample(
                name, image, data_sample=sample, out_file=str(self.folder / name)
            )


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
    try:
        load_into(model, checkpoint, trust=trust, strict=strict)
    except (ValueError, OSError) as error:
        named = "" if checkpoint in str(error) else f"{checkpoint}: "
        raise UserError(f"{named}{error}") from error

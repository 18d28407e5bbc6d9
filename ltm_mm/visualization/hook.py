"""Pictures of what merging does, of the same images all through a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checks.loaders import datasets
from ..checks.randomness import preserve_rng_state
from ..engine.build import evaluating, plain_model
from ..engine.merging_blocks import mask_modules
from ..engine.photos import pipeline_of, some_images
from ..errors import UserError
from ..registry import HOOKS
from .figures import pixels_of
from .merge_visualizer import MergeVisualizer
from .panels import merge_map_figure


@HOOKS.register_module()
class MergePicturesHook(Hook):
    """After a validation, draw merge maps and the predictions with and without merging.

    The pictures go to the visualizer's backends (files, TensorBoard, WandB, ...) as
    ``merge_map_<image>`` and ``predictions_<image>`` at the step they belong to. Training goes
    on as it would without them: random numbers, weights and modes are left as they were. In a
    config::

        custom_hooks = [dict(type="ltm_mm.MergePicturesHook", images=3)]

    Args:
        images: how many images of the validation set, evenly spread over it, or a list of
            image files.
        interval: validations from one drawing to the next, >= 1.
        score_thr: instances below this score are not drawn.
        dpi: pixels per inch of the figures, 12 inches wide.

    Raises:
        ValueError: if ``images`` or ``interval`` is out of range.
    """

    priority = "ABOVE_NORMAL"  # before EMAHook takes back the weights that were validated

    def __init__(
        self,
        images: int | Sequence[str] = 3,
        interval: int = 1,
        score_thr: float = 0.3,
        dpi: int = 100,
    ) -> None:
        if isinstance(images, str) or (isinstance(images, int) and images < 1) or not images:
            raise ValueError(f"images must be a number >= 1 or a list of files, got {images!r}")
        if not (isinstance(interval, int) and interval >= 1):
            raise ValueError(f"interval must be an int >= 1, got {interval!r}")
        self.images = images
        self.interval = interval
        self.score_thr = score_thr
        self.dpi = dpi
        self.validations = 0
        self.usable = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw, if it is time to; what cannot be drawn is logged and ends no training."""
        self.validations += 1
        if runner.rank or not self.usable or (self.validations - 1) % self.interval:
            return
        try:
            with preserve_rng_state():
                self._draw(runner)
        except Exception as error:  # whatever it is: a picture must not end a long training
            self.usable = False
            known = isinstance(error, (UserError, ValueError))
            line = f"{type(self).__name__} draws nothing: {str(error) or type(error).__name__}"
            runner.logger.warning(line, exc_info=not known)

    def _draw(self, runner: Runner) -> None:
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        if not mask_modules(model):
            raise UserError("the model merges no tokens")
        dataset, _ = next(datasets(runner.val_dataloader.dataset, "val_dataloader.dataset"))
        with evaluating(model):
            visualizer = MergeVisualizer(
                model,
                plain_model(model, runner.cfg).to(next(model.parameters()).device).eval(),
                pipeline_of(runner.cfg, "val_dataloader"),
                dataset.metainfo.get("classes"),
                f"{Path(runner.cfg.filename or runner.experiment_name).stem}, step {runner.iter}",
            )
            for file in self._files(dataset):
                comparison = visualizer.compare(file, self.score_thr)
                figures = {
                    "merge_map": merge_map_figure(comparison.scene),
                    "predictions": visualizer.predictions_figure(comparison, self.score_thr),
                }
                for name, figure in figures.items():
                    figure.set_dpi(self.dpi)
                    pixels = pixels_of(figure)
                    runner.visualizer.add_image(f"{name}_{file.stem}", pixels, step=runner.iter)

    def _files(self, dataset: Any) -> list[Path]:
        """The same images each time."""
        if not isinstance(self.images, int):
            return [Path(name) for name in self.images]
        return some_images(dataset, self.images)

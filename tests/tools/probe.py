"""Imported by the tests' configs inside the processes that the tools start."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class LossProbe(Hook):
    """Append every step's losses and gradient norm to ``<folder>/<rank>.jsonl``."""

    priority = "VERY_LOW"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Write this rank's own values; mmengine's log has those of rank 0 only."""
        values = {name: value.item() for name, value in (outputs or {}).items()}
        values["grad_norm"] = runner.message_hub.get_scalar("train/grad_norm").current()
        values["images"] = [Path(s.img_path).name for s in self._samples(data_batch)]
        with open(self.folder / f"{os.environ.get('RANK', '0')}.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")

    @staticmethod
    def _samples(data_batch: dict | None) -> Sequence:
        return (data_batch or {}).get("data_samples", ())

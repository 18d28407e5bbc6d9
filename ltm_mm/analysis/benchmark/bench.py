"""Models measured side by side: time, memory, and the parts they go to."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...engine.build import channels_of, check_device
from ...errors import UserError
from .equal_time import equal_time_size
from .flops import count_macs
from .latency import Clock, interleave, part_times, peak_memory, weight_memory
from .random_data import random_data
from .report import PLAIN, BenchmarkRow

AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Bench:
    """Models on their device, ready to be timed in turn.

    Args:
        models: name -> backbone, or mmdet's or mmseg's whole model.
        size: height and width of the images in pixels.
        device: 'cpu' or 'cuda'.
        amp: None, 'fp16' or 'bf16'.
        compiled: mode of ``torch.compile`` for the backbones, such as 'default', or 'aot_eager',
            graphs without generated code; None: as they are.
        channels_last: that memory format for weights and images.
        clock: seconds so far; on a GPU wall time.

    Raises:
        UserError: if there is no such device.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        size: tuple[int, int],
        device: str = "cpu",
        amp: str | None = None,
        compiled: str | None = None,
        channels_last: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        check_device(device)
        self.device = torch.device(device)
        self.size = size
        self.amp = amp
        self.compiled = compiled
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.clock = clock
        laid_out: Any = {n: m.to(self.device) for n, m in models.items()}
        self.models: dict[str, nn.Module] = {
            n: m.to(memory_format=self.layout) for n, m in laid_out.items()
        }
        self.macs: dict[str, dict[str, int]] = {}
        for name, model in tqdm(self.models.items(), desc="work", unit="model", leave=False):
            model.eval()
            self.macs[name] = self._count(model, self.size)
        self._calls = {
            n: _compile_backbone(m, compiled) if compiled else m for n, m in self.models.items()
        }

    def measure(
        self, batch: int, rounds: int, train_step: bool = False, equal_time_image: bool = False
    ) -> list[BenchmarkRow]:
        """Time, memory and parts of every model.

        Args:
            batch: images per pass.
            rounds: rounds that count; two more come before them.
            train_step: also forward, backward and a step of AdamW, in training mode.
            equal_time_image: also the plain model on images so small that it takes as long as each
                merging one.

        Returns:
            One row per model, in their order, then those on smaller images.

        Raises:
            UserError: if ``equal_time_image`` is asked for and no plain model is among them.
        """
        for model in self.models.values():
            model.eval()
        runs = {name: self._forward(model, batch) for name, model in self._calls.items()}
        plain = next((name for name in self.models if name in PLAIN), "")
        sizes = self._equal_time_sizes(plain, runs, batch) if equal_time_image else {}
        for name, size in sizes.items():
            runs[name] = self._forward(self._calls[plain], batch, size)
        seconds = self._time(runs, rounds, f"forward, batch {batch}")
        rows = []
        for name, run in runs.items():
            model = self.models[plain if name in sizes else name]
            macs = self._count(model, sizes[name]) if name in sizes else self.macs[name]
            parts = {} if self.compiled or name in sizes else self.parts(name, batch)
            memory = weight_memory(model) + peak_memory(run, self.device)
            count = sum(p.numel() for p in model.parameters())
            rows.append(BenchmarkRow(name, batch, count, macs, seconds[name], parts, memory))
        if train_step:
            self._measure_training(rows[: len(self.models)], batch, rounds)
        return rows

    def forward(self, name: str, batch: int) -> Callable[[], None]:
        """One pass of a model, without gradients; on a GPU it ends synchronised."""
        return self._forward(self._calls[name], batch)

    def parts(self, name: str, batch: int) -> dict[str, float]:
        """Part -> seconds of one more pass of a model, which is not compiled."""
        model = self.models[name]
        return part_times(model, self._forward(model, batch), self.device, self.clock)

    def time_with(
        self, batch: int, rounds: int, more: Mapping[str, Callable[[], object]]
    ) -> dict[str, list[float]]:
        """Seconds of a forward pass of the models and of further runs, in turn."""
        runs = {f"{n}, PyTorch": self._forward(model, batch) for n, model in self._calls.items()}
        return self._time({**runs, **more}, rounds, f"forward, batch {batch}")

    def _equal_time_sizes(
        self, plain: str, runs: Mapping[str, Callable[[], None]], batch: int
    ) -> dict[str, tuple[int, int]]:
        """Name of a row -> size of the images on which plain takes as long as a merging model."""
        if not plain:
            raise UserError("--shrunk needs the model without merging: add --ltm none ... to it")
        whole = sum(self.macs[plain].values())
        merging = [name for name in runs if sum(self.macs[name].values()) < whole]
        # Images are made once per size, so that no pass is timed with them.
        passes = cache(lambda size: self._forward(self._calls[plain], batch, size))
        sizes = {}
        for name in tqdm(merging, desc="image of equal time", unit="model", leave=False):
            height, width = equal_time_size(
                self.size, lambda size: passes(size)(), runs[name], self.clock
            )
            sizes[f"{plain} at {height} x {width} (as long as {name})"] = (height, width)
        return sizes

    def _count(self, model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
        """Multiply-accumulates of one image, by part."""
        run = self._forward(model, 1, size)
        return dict(count_macs(model, torch.empty(0), run).by_part)

    def _measure_training(self, rows: list[BenchmarkRow], batch: int, rounds: int) -> None:
        for model in self.models.values():
            model.train()
        optimizers = {
            name: torch.optim.AdamW(model.parameters(), lr=1e-6)
            for name, model in self.models.items()
        }
        runs = {
            name: self._train_step(model, batch, optimizers[name])
            for name, model in self._calls.items()
        }
        seconds = self._time(runs, rounds, f"training step, batch {batch}")
        for row in rows:
            row.train = seconds[row.name]
            state = optimizers[row.name].state.values()
            held = sum(v.nbytes for s in state for v in s.values() if isinstance(v, Tensor))
            peak = peak_memory(runs[row.name], self.device)
            row.train_memory = weight_memory(self.models[row.name]) + held + peak

    def _time(
        self, runs: Mapping[str, Callable[[], object]], rounds: int, what: str
    ) -> dict[str, list[float]]:
        with tqdm(total=(rounds + 2) * len(runs), desc=what, unit="run", mininterval=1) as bar:
            return interleave(
                {name: _counted(run, bar) for name, run in runs.items()}, rounds, 2, self.clock
            )

    def _forward(
        self, model: nn.Module, batch: int, size: tuple[int, int] | None = None
    ) -> Callable[[], None]:
        call = self._call(model, batch, "tensor", size or self.size)

        def run() -> None:
            with torch.no_grad(), self._autocast():
                call()
            self._synchronize()

        return run

    def _train_step(
        self, model: Any, batch: int, optimizer: torch.optim.Optimizer
    ) -> Callable[[], None]:
        call = self._call(model, batch, "loss", self.size)

        def run() -> None:
            with self._autocast():
                out = _trained(call)
            if isinstance(out, dict):
                loss = model.parse_losses(out)[0]
            else:
                loss = sum(m.float().square().mean() for m in out)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self._synchronize()

        return run

    def _call(
        self, model: nn.Module, batch: int, mode: str, size: tuple[int, int]
    ) -> Callable[[], object]:
        """One pass on random images; a whole model's data are made ready beforehand."""
        if not hasattr(model, "data_preprocessor"):
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(batch, channels_of(model), *size, generator=generator)
            images = images.to(self.device).to(memory_format=self.layout)
            return lambda: model(images)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            data = random_data(model, batch, size, training=mode == "loss")
        data["inputs"] = data["inputs"].to(memory_format=self.layout)
        return lambda: model(**data, mode=mode)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, AMP[self.amp]) if self.amp else nullcontext()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _trained(call: Callable[[], object]) -> Any:
    """A pass in training mode, in which batch normalisation may want more images."""
    try:
        return call()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "--train-step: the model normalises over the batch, which one image is too few for: "
            "use --batch 2 or more"
        ) from error


def _counted(run: Callable[[], object], bar: tqdm) -> Callable[[], None]:
    def counted() -> None:
        run()
        bar.update()

    return counted


def _compile_backbone(model: Any, mode: str) -> Any:
    """The model with its backbone compiled; the rest runs as it is."""
    options: dict[str, Any] = dict(backend=mode) if mode == "aot_eager" else dict(mode=mode)
    if not hasattr(model, "backbone"):
        return torch.compile(model, **options)
    model.backbone.compile(**options)
    return model

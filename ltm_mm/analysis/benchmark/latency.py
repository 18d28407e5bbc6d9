"""Time and memory of models side by side, so that a ratio can be trusted.

Machines drift: clocks throttle, neighbours come and go. So models take turns in one
process, and a ratio is taken within each round before the median is.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler import profile

from ...errors import UserError
from .parts import PartMeter

Run = Callable[[], object]
Clock = Callable[[], float]


def clock_of(cpu_time: bool, threads: int | None, device: str) -> Clock:
    """Wall time, or the process's CPU seconds, which neighbours do not disturb."""
    if cpu_time and (threads != 1 or device != "cpu"):
        raise UserError("--cpu-time adds up all threads: it needs --threads 1 and --device cpu")
    return time.process_time if cpu_time else time.perf_counter


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measure over the rounds; a time is in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summary of at least one value.

        >>> Spread.of([1.0, 2.0, 4.0, 5.0, 9.0])
        Spread(median=4.0, low=2.0, high=5.0)
        """
        low, median, high = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else list(values) * 3
        )
        return cls(median, low, high)


def ratios(base: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times less than ``base`` the other took, round by round.

    Args:
        base, other: one value per round, of the same rounds.

    Returns:
        Spread of base / other; its median is above 1 where the other is faster.
    """
    return Spread.of([a / b for a, b in zip(base, other, strict=True)])


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    warmup: int = 2,
    clock: Clock = time.perf_counter,
    on_run: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Time several runs in turn; every other round goes backwards, against drift.

    Args:
        runs: name -> what to run. On a GPU it must end synchronised.
        rounds: rounds that count, >= 1.
        warmup: rounds before them that do not.
        clock: seconds so far.
        on_run: told the name before each run.

    Returns:
        Name -> seconds, one per round.

    Raises:
        ValueError: if there are no rounds.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be >= 1 and warmup >= 0, got {rounds} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(-warmup, rounds):
        for name in reversed(list(runs)) if k % 2 else runs:
            on_run(name)
            start = clock()
            runs[name]()
            taken = clock() - start
            if k >= 0:
                seconds[name].append(taken)
    return seconds


def part_times(model: nn.Module, run: Run, device: torch.device, clock: Clock) -> dict[str, float]:
    """Where the time of one run goes.

    Args:
        model: what ``run`` calls, not compiled (hooks see no fused parts).
        run: one pass.
        device: where it runs; on a GPU its own events are the clock.
        clock: seconds so far, on the CPU.

    Returns:
        Part (see :data:`.parts.PARTS`) -> seconds.
    """
    if device.type != "cuda":
        with PartMeter(model, clock) as meter:
            run()
        return meter.totals()
    with PartMeter(model, _cuda_mark, lambda a, b: a.elapsed_time(b) / 1000) as meter:
        run()
        torch.cuda.synchronize(device)
    return meter.totals()


def _cuda_mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def peak_memory(run: Run, device: torch.device) -> int:
    """Most bytes that tensors made by a run held at one time, beside those before it.

    On the CPU every allocation is taken from PyTorch's profiler: exact and repeatable,
    where the process's resident set also holds what the C library keeps for later. On
    a GPU it is PyTorch's own peak. What libraries allocate past PyTorch is in neither.

    Args:
        run: one pass or training step.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiler:
        run()
    changes = [
        event
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def weight_memory(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` CPU threads (None: as it is).

    Raises:
        ValueError: if it is neither None nor an int >= 1.
    """
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"threads must be an int >= 1 or None, got {count!r}")
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

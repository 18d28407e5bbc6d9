"""Where a merging Swin's forward pass goes, finer than by module, and its longest kernels."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile, supported_activities

from ....layers import swin_block, window_attention
from ....merging import groups, masks
from ....ops import ShiftedWindows

# Region -> functions that make it up: what holds them, and their names.
REGIONS: Mapping[str, list[tuple[Any, str]]] = {
    "windows": [(ShiftedWindows, "cut"), (ShiftedWindows, "join"), (ShiftedWindows, "mass")],
    "matching": [(masks, "match")],
    "gathering": [(groups.Groups, "merge"), (swin_block, "unmerge_update")],
    "bias": [(window_attention, "group_bias"), (window_attention, "position_bias")],
    "attention": [(swin_block.SwinView, "_attend")],  # the bias within it left out
    "mlp": [(swin_block.SwinView, "_mlp_update")],
}
WITHIN = {"bias": "attention"}
MARK = "ltm_mm: "


def profile_regions(run: Callable[[], object], longest: int = 10) -> dict:
    """Profile one pass.

    Args:
        run: the pass, of a Swin of ours that is not compiled; on a GPU it ends synchronised.
        longest: kernels that are listed; on a CPU operators.

    Returns:
        ``regions`` (seconds by region, 'rest' last), ``kernels`` (name, calls, seconds of the
        longest), ``launches`` (how many there were) and ``kernel_seconds`` (of all of them).
    """
    with labelled():
        run()
        run()
        with profile(activities=supported_activities()) as profiler:
            run()
    on_gpu = ProfilerActivity.CUDA in supported_activities()
    events = profiler.events() or []
    regions: Counter[str] = Counter()
    for event in events:
        if event.name.startswith(MARK) and event.device_type == DeviceType.CPU:
            regions[event.name.removeprefix(MARK)] += (
                event.device_time_total if on_gpu else event.cpu_time_total
            )
    kernels: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        if event.name.startswith(MARK):
            continue
        if on_gpu and event.device_type == DeviceType.CUDA:
            kernels[event.name] += event.device_time_total
        elif not on_gpu and event.name.startswith("aten::"):
            kernels[event.name] += event.self_cpu_time_total
        else:
            continue
        calls[event.name] += 1
    total = sum(kernels.values())
    for inner, outer in WITHIN.items():
        regions[outer] -= regions[inner]
    seconds = {name: regions[name] / 1e6 for name in REGIONS}
    return dict(
        regions=seconds | {"rest": max(total / 1e6 - sum(seconds.values()), 0.0)},
        kernels=[[name, calls[name], time / 1e6] for name, time in kernels.most_common(longest)],
        launches=calls.total(),
        kernel_seconds=total / 1e6,
    )


@contextmanager
def labelled() -> Iterator[None]:
    """Mark the regions' functions for the profiler."""
    marked = [function for functions in REGIONS.values() for function in functions]
    before = [(holder, name, vars(holder)[name]) for holder, name in marked]
    try:
        for region, functions in REGIONS.items():
            for holder, name in functions:
                setattr(holder, name, _marked(vars(holder)[name], MARK + region))
        yield
    finally:
        for holder, name, function in before:
            setattr(holder, name, function)


def _marked(function: Callable, label: str) -> Callable:
    @wraps(function)
    def marked(*args: object, **kwargs: object) -> object:
        with record_function(label):
            return function(*args, **kwargs)

    return marked

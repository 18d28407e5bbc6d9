"""Which part of a network a module belongs to, so that costs can be attributed.

The parts of a backbone are attention, the MLP (an EfficientViT's local module), what
merging adds (mask modules, merging and unmerging) and the rest (embedding, norms,
residual sums, downsampling, convolution stages); of a detector or segmentor also its
neck and heads, by their own names, and what is done with their results.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ...families import FAMILIES
from ...merging import MergeScope, MergingBlock, merges

ATTENTION, MLP, MERGE, REST = "attention", "mlp", "merge", "rest"
PARTS = (ATTENTION, MLP, MERGE, REST)  # of a backbone
# Of a whole model outside of its modules: boxes are chosen, maps resized.
POST = "post-processing"

# Attributes by which our blocks and those of mmdet, mmseg and timm hold their parts.
_ATTRIBUTES = {
    "attn": ATTENTION,
    "ffn": MLP,
    "mlp": MLP,
    "merge": MERGE,
    **{name: part for family in FAMILIES.values() for name, part in family.parts.items()},
}


def parts_of(model: nn.Module) -> dict[str, str]:
    """Part of every module's own work, without its children's.

    Args:
        model: a backbone, or a model that has one as ``backbone``.

    Returns:
        Name, as in ``named_modules()``, -> one of ``PARTS``; outside of a backbone the first
        step of the name, such as 'neck', or ``POST``. timm's Swin cuts its windows in the
        block and not in ``attn``: there it counts as the rest.
    """
    whole = is_whole(model)
    parts = {}
    for name, module in model.named_modules():
        steps = name.split(".")
        if whole and steps[0] != "backbone":
            parts[name] = steps[0] or POST
        elif isinstance(module, MergingBlock | MergeScope) and merges(module):
            parts[name] = MERGE  # what it does itself, outside its children
        else:
            parts[name] = next((_ATTRIBUTES[s] for s in steps if s in _ATTRIBUTES), REST)
    return parts


def is_whole(model: nn.Module) -> bool:
    """Whether it is a detector or segmentor and not a backbone."""
    return isinstance(getattr(model, "backbone", None), nn.Module)


def ordered(parts: Iterable[str]) -> list[str]:
    """Each once: a backbone's first, others as they come, ``POST`` last."""
    present = list(dict.fromkeys(parts))
    of_backbone = [part for part in PARTS if part in present]
    others = (p for p in present if p not in PARTS)
    return of_backbone + sorted(others, key=lambda part: part == POST)


class PartMeter:
    """Charges what a meter reads to the part that is running; a context manager.

    Hooks read the meter wherever a pass enters or leaves a module of another part, so
    a part's share does not hold what other parts do inside it.

    Args:
        model: see :func:`parts_of`; it is called as a module within the context.
        read: the meter: a count or time so far, or a mark such as a CUDA event.
        between: what lies between two readings. Default: their difference.
    """

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[], Any],
        between: Callable[[Any, Any], float] = lambda before, after: after - before,
    ) -> None:
        self._model = model
        self._read = read
        self._between = between
        self._running: list[str] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._last: Any = None

    def __enter__(self) -> "PartMeter":
        modules = dict(self._model.named_modules())
        parts = parts_of(self._model)
        self._handles = []
        for name, part in parts.items():
            if name and part in PARTS and parts[_holder(name, modules)] == part:
                continue  # changes nothing; mmdet calls what is in its heads, not the heads
            enter, leave = self._hooks(part)
            self._handles.append(modules[name].register_forward_pre_hook(enter))
            self._handles.append(modules[name].register_forward_hook(leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def totals(self) -> dict[str, float]:
        """What was charged to each part that was charged something, see :func:`ordered`."""
        totals = dict.fromkeys(ordered(part for part, _, _ in self._spans), 0.0)
        for part, before, after in self._spans:
            totals[part] += self._between(before, after)
        return {part: total for part, total in totals.items() if total}

    def _hooks(self, part: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(*_: object) -> None:
            self._charge()
            self._running.append(part)

        def leave(*_: object) -> None:
            self._charge()
            self._running.pop()

        enter.in_parts = leave.in_parts = True  # type: ignore[attr-defined]
        return enter, leave

    def _charge(self) -> None:
        now = self._read()
        if self._running:
            self._spans.append((self._running[-1], self._last, now))
        self._last = now


def _holder(name: str, modules: dict[str, nn.Module]) -> str:
    """The nearest module above that runs itself, as lists do not."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(modules[name], nn.ModuleList | nn.ModuleDict):
            break
    return name

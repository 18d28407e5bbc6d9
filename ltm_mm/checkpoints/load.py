"""Load any supported checkpoint into a backbone, or into a whole detector or segmentor."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import preview
from ..merging import merges
from .detect import StateDict, unwrap
from .fit import DERIVED, MERGE, to_backbone
from .learned import Learned
from .mm import unwrapped_name
from .optional import is_model_wrapper, print_log
from .read import read_state_dict

Weights = str | os.PathLike | Mapping


class Report(NamedTuple):
    """Names of the parameters loaded, left fresh, and of the checkpoint's left unused."""

    loaded: list[str]
    fresh: list[str]
    unused: list[str]


def load_backbone(
    backbone: nn.Module, weights: Weights, prefix: str | None = None, trust: bool = False
) -> Report:
    """Load a backbone's weights and log it in one line.

    Args:
        backbone: with the parameter names of mmdet's Swin, or of timm's networks.
        weights: path or URL, a checkpoint or a state dict, from any known source.
        prefix: of the backbone's keys, as in ``init_cfg``; None: told by the keys.
        trust: see :func:`.read.read_state_dict`.

    Returns:
        What was loaded and what was not. ``merge`` parameters and output norms that the
        weights do not hold stay fresh.

    Raises:
        ValueError: if the weights do not fit (nothing is loaded then) or cannot be read.
        OSError: if the file cannot be found or downloaded.
    """
    given = _read(weights, trust)
    with _naming(weights):
        state = to_backbone(given, backbone, prefix)
        return _load(backbone, state, given, weights)


def load_into(model: Any, weights: Weights, trust: bool = False, strict: bool = False) -> Report:
    """Load a trained detector or segmentor, or backbone weights, into a whole model.

    The backbone must fit. Other parts of another shape or name (a head for another
    number of classes) start fresh, and the one log line says which.

    Args:
        model: with a ``backbone``, with or without merging.
        weights: path or URL, a checkpoint or a state dict.
        trust: see :func:`.read.read_state_dict`.
        strict: for evaluation: it is an error if anything but merging stays fresh (what
            the checkpoint does hold is in the model by then).

    Returns:
        See :func:`load_backbone`; names are those of the whole model.

    Raises:
        ValueError: if the backbone (with ``strict``, the model) does not fit, or the
            checkpoint cannot be read.
        OSError: if the file cannot be found or downloaded.
    """
    while is_model_wrapper(model):
        model = model.module
    given = _read(weights, trust)
    names = [n for n, _ in model.named_modules() if re.search(r"(^|\.)(img_)?backbone$", n)]
    with _naming(weights):
        if not names:
            return _load(
                model, to_backbone(given, model, adapt=not strict), given, weights, (), strict
            )
        state, misfits = _whole(given, model, names, adapt=not strict)
        return _load(model, state, given, weights, misfits, strict)


def _read(weights: Weights, trust: bool) -> dict[str, Tensor]:
    state = unwrap(weights) if isinstance(weights, Mapping) else read_state_dict(weights, trust)
    if state and all(".merge.detail." in key for key in state):
        name = "the file" if isinstance(weights, Mapping) else os.fspath(weights)
        raise ValueError(
            f"{name} holds details alone: give it as --detail, beside the checkpoint they were "
            "learned for"
        )
    return state


@contextlib.contextmanager
def _naming(weights: Weights) -> Iterator[None]:
    """Put the file's name before what is wrong with its weights."""
    try:
        yield
    except ValueError as error:
        if isinstance(weights, Mapping):
            raise
        raise ValueError(f"{os.fspath(weights)}: {error}") from error


def _whole(
    given: dict[str, Tensor], model: nn.Module, names: list[str], adapt: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """A whole model's state dict with its backbones adapted, and the misfits beside them."""
    given_whole = {unwrapped_name(key): value for key, value in given.items()}
    inside = tuple(f"{name}." for name in names)
    model_state = model.state_dict()
    # The metadata lets heads convert the names of their older versions.
    state, misfits = StateDict(), []
    state._metadata = getattr(given, "_metadata", None)
    for name, prefix in zip(names, inside, strict=True):
        part = {k[len(prefix) :]: v for k, v in given_whole.items() if k.startswith(prefix)}
        adapted = to_backbone(part or given, model.get_submodule(name), adapt=adapt)
        state |= {prefix + key: value for key, value in adapted.items()}
    if not any(key.startswith(inside) for key in given_whole):
        return state, []  # backbone weights alone
    for key, value in given_whole.items():
        if key.startswith(inside):
            continue
        if key in model_state and model_state[key].shape != value.shape:
            shapes = f"checkpoint {tuple(value.shape)}, model {tuple(model_state[key].shape)}"
            misfits.append(f"{key}: {shapes}")
        else:
            state[key] = value
    return state, misfits


def _load(
    model: nn.Module,
    state: dict[str, Tensor],
    given: dict[str, Tensor],
    weights: Weights,
    misfits: Sequence[str] = (),
    strict: bool = False,
) -> Report:
    """Load what fits, log one line, and report."""
    names = [key for key in model.state_dict() if not DERIVED.search(key)]
    if broken := [key for key, value in state.items() if value.isnan().any()]:
        raise ValueError(
            f"{len(broken)} tensors of the checkpoint hold values that are not a number: its "
            f"training diverged ({preview(broken, 3)})"
        )
    missing, unused = model.load_state_dict(state, strict=False)
    lacking = set(missing)
    # Details that a backbone took from a file of their own are no concern of the checkpoint's.
    has_file = any(getattr(module, "learned", None) for module in model.modules())
    lacking -= {key for key in lacking if has_file and ".merge.detail." in key}
    fresh = [key for key in names if key in lacking]
    report = Report([key for key in names if key not in lacking], fresh, unused)
    merge_keys = [key for key in fresh if MERGE.search(key)]
    norms = [key for key in fresh if re.search(r"^(.*backbone\.)?norm\d*\.", key)]
    heads = [key for key in fresh if key not in {*merge_keys, *norms}]
    name = type(model).__name__
    if strict and (norms or heads):
        raise ValueError(
            f"the checkpoint lacks {len(norms + heads)} parameters of {name}, which would be "
            f"untrained: {preview(misfits or norms + heads, 3)}"
        )
    origin = "" if isinstance(weights, Mapping) else f" from {os.fspath(weights)}"
    parts = [f"{name}: {len(report.loaded)} of {len(names)} tensors loaded{origin}"]
    if merge_keys:
        parts.append(f"{len(merge_keys)} merging parameters start fresh (e.g. {merge_keys[0]})")
    if norms:
        parts.append(f"output norms start fresh ({preview(norms, 3)})")
    if heads:
        which = preview(misfits or heads, 3)
        parts.append(f"{len(heads)} other parameters start fresh and need training ({which})")
    other = sum(bool(MERGE.search(key)) for key in given)
    other -= sum(bool(MERGE.search(key)) for key in report.loaded)
    if other:
        parts.append(
            f"{other} merging parameters of the checkpoint are of another plan and not used"
        )
    if unused:
        parts.append(f"{len(unused)} of the checkpoint are not used ({preview(unused, 3)})")
    print_log("; ".join(parts), "current", logging.WARNING if heads else logging.INFO)
    if getattr(given, "learned", False) and not merges(model):
        print_log(
            f"the weights{origin} learned with merging on, and {name} merges nothing: use the "
            "checkpoint that they were learned from",
            "current",
            logging.WARNING,
        )
    module: Any
    for module in model.modules():
        if isinstance(learned := getattr(module, "learned", None), Learned):
            learned.check_weights(module.swin_stages())
    return report

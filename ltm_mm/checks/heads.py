"""Whether a model's parts fit the classes and one another."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import UserError
from ..models.backbones.base import LTMBackbone
from .notes import log_warning

# Their numbers of classes are not those of the data set, as in mmdet's NumClassCheckHook.
OTHER_HEADS = re.compile(r"(^|\.)(rpn_head|semantic_head|loss\w*)(\.|$)")


def unwrapped(model: Any) -> nn.Module:
    """A model without its wrappers for several ranks."""
    while is_model_wrapper(model):
        model = model.module
    return model


def check_head(model: Any, classes: Sequence[str], path: str, ignored: int | None = None) -> None:
    """Refuse a segmentor whose head has fewer classes than the labels it is to learn.

    Args:
        model: of the runner, perhaps wrapped.
        classes: of the data set.
        path: its dotted key in the config.
        ignored: the data set's label that does not count.

    Raises:
        UserError: names both numbers and the option.
    """
    head = getattr(unwrapped(model), "decode_head", None)
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    outputs = getattr(heads[-1], "num_classes", None)
    of_head = getattr(heads[-1], "ignore_index", None)
    if None not in (of_head, ignored) and of_head != ignored:
        raise UserError(
            f"{path}.ignore_index is {ignored}, but that of model.decode_head {of_head}: pixels "
            "of one of them would be trained on; give both one number"
        )
    advice = f"set model.decode_head.num_classes={len(classes)} (and that of an auxiliary_head)"
    if outputs is None or not classes:
        return
    for name, part in unwrapped(model).named_modules():
        count = getattr(part, "num_classes", None)
        if name.startswith("auxiliary_head") and isinstance(count, int) and count < len(classes):
            raise UserError(
                f"{path} has {len(classes)} classes, but model.{name} {count}: set "
                f"model.{name}.num_classes={len(classes)}"
            )
    if outputs < len(classes):
        raise UserError(
            f"{path} has {len(classes)} classes, but the model's head {outputs}: {advice}"
        )
    if outputs > len(classes):
        log_warning(f"{path} has {len(classes)} classes, the model's head {outputs}: {advice}")


def check_detector(model: Any, classes: Sequence[str], path: str) -> None:
    """Refuse a detector whose heads have another number of classes than the data set.

    Raises:
        UserError: names both numbers and the option.
    """
    for name, module in unwrapped(model).named_modules():
        outputs = getattr(module, "num_classes", None)
        if "head" not in name or OTHER_HEADS.search(name) or not isinstance(outputs, int):
            continue
        if outputs != len(classes):
            raise UserError(
                f"{path} has {len(classes)} classes, but model.{name} {outputs}: "
                f"set model.{name}.num_classes={len(classes)}"
            )


def check_channels(model: Any) -> None:
    """Refuse a neck or head that expects other channels than the backbone of ours gives.

    Raises:
        UserError: names both and the option.
    """
    model = unwrapped(model)
    given = getattr(model, "backbone", None)
    if not isinstance(given, LTMBackbone):
        return
    for name, part in _map_consumers(model):
        wanted, given_here = part.in_channels, list(given.out_channels)
        if isinstance(wanted, int):
            index = getattr(part, "in_index", None)
            if not isinstance(index, int) or not -len(given_here) <= index < len(given_here):
                continue
            wanted, given_here = [wanted], [given_here[index]]
        elif (index := getattr(part, "in_index", None)) is not None:
            if any(not -len(given_here) <= i < len(given_here) for i in index):
                raise UserError(
                    f"model.{name}.in_index is {list(index)}, but the backbone gives "
                    f"{len(given_here)} maps"
                )
            given_here = [given_here[i] for i in index]
        if list(wanted) != given_here:
            raise UserError(
                f"model.{name}.in_channels is {list(wanted)}, but the maps of "
                f"{type(given).__name__} have {given_here} channels: set it to these"
            )


def _map_consumers(model: Any) -> Iterator[tuple[str, Any]]:
    """What takes the backbone's maps: the first module of the neck, or all the heads."""
    neck = getattr(model, "neck", None)
    heads: dict[str, Any]
    if neck is not None:
        heads = {"neck": neck[0] if isinstance(neck, nn.Sequential) else neck}
    else:
        heads = {k: getattr(model, k, None) for k in ("decode_head", "auxiliary_head")}
    for name, head in heads.items():
        several = isinstance(head, nn.ModuleList)
        for index, part in enumerate(head if several else [head]):
            if isinstance(getattr(part, "in_channels", None), (int, list, tuple)):
                yield f"{name}.{index}" if several else name, part

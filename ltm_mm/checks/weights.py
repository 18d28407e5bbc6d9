"""Weights that a config starts from: which option names them, and whether they can be right."""

import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError, chain, message
from ..families import of_type

if TYPE_CHECKING:
    from mmengine.config import Config

ZOOS = ("open-mmlab://", "torchvision://", "mmcls://")


class NamedWeights(NamedTuple):
    """Weights that a config names.

    Attributes:
        option: dotted key that names them.
        weights: a file or an address.
        off: dotted key that is None for a start without them.
        backbone: the type of the backbone that they are for; '' for another part.
    """

    option: str
    weights: str
    off: str
    backbone: str

    @property
    def advice(self) -> str:
        """What to do about them."""
        return f"set --cfg-options {self.option}=FILE, or {self.off}=None to start without weights"


def named_weights(cfg: "Config") -> list[NamedWeights]:
    """All weights that the model of a config starts from."""
    return list(_walk(cfg.get("model") or {}, "model"))


def _walk(node: object, path: str) -> Iterator[NamedWeights]:
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _walk(child, f"{path}.{index}")
    if not isinstance(node, Mapping):
        return
    backbone_type = _type(node) if path.endswith("backbone") else ""
    for key, value in node.items():
        option = f"{path}.{key}"
        if key == "pretrained" and isinstance(value, str) and (backbone_type or path == "model"):
            yield NamedWeights(option, value, option, backbone_type or _type(node.get("backbone")))
        elif key == "init_cfg":
            several = isinstance(value, (list, tuple))
            for index, one in enumerate(value if several else [value]):
                if is_pretrained(one):
                    where = f"{option}.{index}" if several else option
                    file = one if isinstance(one, str) else str(one.get("checkpoint"))
                    yield NamedWeights(
                        where + ".checkpoint" * (file is not one), file, option, backbone_type
                    )
        else:
            yield from _walk(value, option)


def is_pretrained(init_cfg: object) -> bool:
    """Whether an ``init_cfg`` names weights: ``dict(type='Pretrained', ...)``, or their file."""
    type_name = _type(init_cfg)
    return isinstance(init_cfg, str) or type_name.removesuffix("Init") == "Pretrained"


def _type(node: object) -> str:
    node_type = node.get("type", "") if isinstance(node, Mapping) else ""
    return str(getattr(node_type, "__name__", node_type))


def check_weights(cfg: "Config") -> None:
    """Refuse weights that do not exist, or that are of another network by their name.

    A base config's ``model.pretrained`` stays when a config converts its backbone.

    Raises:
        UserError: names the option.
    """
    for named in named_weights(cfg):
        family = of_type(named.backbone)
        file = Path(named.weights).expanduser()
        if family and named.weights.startswith(ZOOS) and family.name not in named.weights:
            raise UserError(
                f"{named.option} names {named.weights}, weights of another network than "
                f"{named.backbone}, from a base config perhaps: {named.advice}"
            )
        if "://" not in named.weights and not file.is_file():
            what = "a folder" if file.is_dir() else "a file that does not exist"
            raise UserError(f"{named.option} names {named.weights}, {what}: {named.advice}")


@contextmanager
def naming_weights(cfg: "Config") -> Iterator[None]:
    """Name the option behind weights that cannot be downloaded, read or loaded within.

    Raises:
        UserError: says what the error within said, and what to set.
    """
    try:
        yield
    except (OSError, ValueError, UserError) as error:
        line = message(error)
        offline = any(isinstance(e, (ConnectionError, urllib.error.URLError)) for e in chain(error))
        known = named_weights(cfg)
        meant = [named for named in known if named.weights in line]
        meant = meant or [named for named in known if offline and "://" in named.weights]
        if not meant or meant[0].option in line:
            raise
        advice = "; ".join(f"{named.option} names it: {named.advice}" for named in meant)
        raise UserError(f"{line}; {advice}") from error

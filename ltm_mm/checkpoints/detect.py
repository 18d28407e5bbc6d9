"""Tell a checkpoint's source by its keys, and bring it into the names used here."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..families import FAMILIES, load

META = "ltm_learned"  # in a checkpoint's meta: what was learned for merging, see .learned
WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")


class Source(NamedTuple):
    """A known format: its name, keys that give it away, and its converter's name."""

    name: str
    pattern: str
    converter: str

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this format in the names used here."""
        return load(self.converter)(state)


# The first whose pattern is found in a key wins.
SOURCES = [Source(*known) for family in FAMILIES.values() for known in family.checkpoints]


def unwrap(checkpoint: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint, whatever it is wrapped in.

    Args:
        checkpoint: a state dict, or a mapping that holds one under ``state_dict``,
            ``model`` or one of their usual variants.

    Returns:
        A new dict of the tensors alone, with the ``_metadata`` of the original if any, and whether
        the weights were learned for merging.

    Raises:
        ValueError: if there is no tensor in it.
    """
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    while isinstance(checkpoint, Mapping):
        inner = next((k for k in WRAPPERS if isinstance(checkpoint.get(k), Mapping)), None)
        if inner is None:
            break
        checkpoint = checkpoint[inner]
    entries = checkpoint.items() if isinstance(checkpoint, Mapping) else ()
    state = StateDict((k, v) for k, v in entries if isinstance(k, str) and isinstance(v, Tensor))
    if not state:
        held = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint)
        raise ValueError(f"no weights in the checkpoint: it holds {held}, not a state dict")
    state._metadata = getattr(checkpoint, "_metadata", None)
    learned = meta.get(META) if isinstance(meta, Mapping) else None
    state.learned = getattr(checkpoint, "learned", bool(learned and learned["weights"]))
    return state


class StateDict(dict):
    """A dict that can carry ``_metadata``, the versions that modules convert old keys by.

    Attributes:
        learned: whether the weights learned with merging on, and so are for merging alone.
    """

    _metadata: dict | None = None
    learned = False


def detect(keys: Iterable[str]) -> Source | None:
    """The source whose names these keys have.

    Args:
        keys: of a state dict without prefixes (see :func:`.mm.strip_prefixes`).

    Returns:
        One of ``SOURCES``; None if none fits (weights saved from the same class do not
        need one).

    Raises:
        ValueError: for Swin V2, whose attention is another function.
    """
    keys = list(keys)
    if any(
        re.search(r"\.att(n|ention)\.(w_msa\.|self\.)?(logit_scale|cpb_mlp\.)", key) for key in keys
    ):
        raise ValueError("the checkpoint holds Swin V2 weights; only Swin (V1) is supported here")
    return next((s for s in SOURCES if any(re.search(s.pattern, key) for key in keys)), None)

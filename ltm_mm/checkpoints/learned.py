"""Files with what was learned for merging: details, and weights if they were trained, too.

A file is an ordinary checkpoint, ``state_dict`` and ``meta``. Without weights its keys are
``stages.I.blocks.K.merge.detail.*`` for every library; weights have the model's own names.
``meta["ltm_learned"]`` describes the model it belongs to.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import preview
from ..merging import Detail, MaskModule
from .detect import META
from .optional import print_log
from .read import read_file

DETAIL_KEY = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.merge\.detail\.(.+)")

# A Swin's blocks per stage: each block, and the norms of its attention and MLP.
Stages = Sequence[Sequence[tuple[nn.Module, Sequence[Any]]]]


@dataclass
class Learned:
    """What was learned for merging in one backbone.

    Attributes:
        details: by stage and block.
        widths, depths: channels and blocks of the model's stages.
        digest: digest of the weights that the details belong to, see :func:`weights_digest`.
        plans: the plans that it was learned for, as text.
        weights: trained parameters, by their name in the model; None: weights were frozen.
        history: measurements during learning, for reports.
    """

    details: dict[tuple[int, int], Detail]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    digest: str
    plans: tuple[str, ...] = ()
    weights: dict[str, Tensor] | None = None
    history: dict = field(default_factory=dict)

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a file, atomically.

        Raises:
            OSError: if the file cannot be written; an existing file is kept.
        """
        save_whole(self.as_checkpoint(), path)

    def as_checkpoint(self, state: Mapping[str, Tensor] | None = None) -> dict:
        """As a checkpoint.

        Args:
            state: state dict of the whole model with merging, under its own names; None: only
                details (and learned weights).
        """
        if state is None:
            state = {
                f"stages.{i}.blocks.{k}.merge.detail.{name}": value
                for (i, k), detail in sorted(self.details.items())
                for name, value in detail.state_dict().items()
            }
            state |= self.weights or {}
        metadata = dict(
            widths=self.widths,
            depths=self.depths,
            digest=self.digest,
            plans=self.plans,
            weights=self.weights is not None,
            history=self.history,
        )
        return dict(state_dict=dict(state), meta={META: metadata})

    def attach(self, stages: Stages) -> None:
        """Put the details into a backbone's merging blocks.

        Args:
            stages: the backbone's stages; blocks that do not merge get no detail.

        Raises:
            ValueError: if they belong to another architecture.
        """
        widths, depths = sizes_of(stages)
        if (widths, depths) != (self.widths, self.depths):
            raise ValueError(
                f"the detail belongs to a Swin of widths {self.widths} and depths {self.depths}, "
                f"this one has widths {widths} and depths {depths}"
            )
        lacking = []
        for i, blocks in enumerate(stages):
            for k, (block, norms) in enumerate(blocks):
                merge, detail = getattr(block, "merge", None), self.details.get((i, k))
                if not isinstance(merge, MaskModule):
                    continue
                if detail is None:
                    lacking.append(f"block {k} of stage {i}")
                    continue
                merge.detail = deepcopy(detail).to(norms[0].weight).train(block.training)
        if lacking:
            print_log(
                f"the detail was learned for {', '.join(self.plans)} and has none for "
                f"{len(lacking)} of the blocks that merge ({preview(lacking, 3)}): learn it for "
                "this plan",
                "current",
                logging.WARNING,
            )

    def check_weights(self, stages: Stages) -> None:
        """Log a warning if a backbone has other weights than those the details were learned on."""
        on_meta = any(norm.weight.is_meta for blocks in stages for _, ns in blocks for norm in ns)
        if self.details and not on_meta and weights_digest(stages) != self.digest:
            print_log(
                "the detail was learned on other weights than the model's: check what it does with "
                "tools/fidelity.py, or learn it anew with tools/learn.py",
                "current",
                logging.WARNING,
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Learned":
        """Read a file that :meth:`save` or ``tools/learn.py`` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds nothing learned, or is damaged.
        """
        content = read_file(path)
        metadata = (content.get("meta") or {}).get(META) if isinstance(content, Mapping) else None
        if metadata is None:
            raise ValueError(
                f"{os.fspath(path)} holds no learned detail: tools/learn.py writes one"
            )
        state = content["state_dict"]
        parts: dict[tuple[int, int], dict[str, Tensor]] = {}
        for key, value in state.items():
            if match := DETAIL_KEY.search(key):
                parts.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
        details = {}
        for position, state_of_detail in parts.items():
            hidden, dim = state_of_detail["down.weight"].shape
            details[position] = Detail(dim, hidden)
            details[position].load_state_dict(state_of_detail)
        weights = {k: v for k, v in state.items() if not DETAIL_KEY.search(k)}
        return cls(
            details,
            tuple(metadata["widths"]),
            tuple(metadata["depths"]),
            metadata["digest"],
            tuple(metadata["plans"]),
            weights if metadata["weights"] else None,
            metadata["history"],
        )


def sizes_of(stages: Stages) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and blocks of every stage."""
    widths = tuple(blocks[0][1][0].weight.numel() for blocks in stages)
    return widths, tuple(len(blocks) for blocks in stages)


def weights_digest(stages: Stages) -> str:
    """16 hex digits that tell trained weights apart, the same in every library: of all norms."""
    digest = hashlib.sha256()
    for blocks in stages:
        for _, norms in blocks:
            for norm in norms:
                for tensor in (norm.weight, norm.bias):
                    digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_whole(content: object, path: str | os.PathLike) -> None:
    """``torch.save`` to a file beside it first, so that a full disk leaves what was there.

    Raises:
        OSError: if it cannot be written.
    """
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    try:
        torch.save(content, part)
        part.replace(file)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter on a full disk
        part.unlink(missing_ok=True)
        raise OSError(f"{file} cannot be written ({error}): is the disk full?") from error

"""The information-bottleneck loss on any detector or segmentor, by configuration."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UserError
from ..merging import Merge, record_merges
from ..merging.grid import GridMerge
from ..models.losses import BOUNDS, DenseIBLoss
from ..models.losses.token_labels import grid_counts, merged_labels, pixel_labels
from ..ops import take_groups
from ..registry import HOOKS
from .merging_blocks import choose_stages

KEY = "information_bottleneck"


@HOOKS.register_module()
class InformationBottleneck(Hook):
    """Adds ``loss_ib`` to what the model's ``loss`` returns, while it is trained.

    ::

        custom_hooks = [dict(type='ltm_mm.InformationBottleneck', bound='paper')]

    The model stays as it is: its merges are recorded, the labels come from the batch's ground
    truth, and the loss goes through the model's own ``loss`` so that
    distributed training, mixed precision and gradient accumulation see one loss more. The
    estimates belong to the training run, not to the model: they lie beside the state dict
    in the checkpoint, come back with ``--resume``, and a model without the loss loads the
    same weights. During warm-up they are kept already, and ``ib_bound`` is logged; then
    ``loss_ib`` is ``weight * ib_bound``.

    Args:
        bound: 'paper' or 'variational', see :mod:`ltm_mm.models.losses.information`.
        weight: of the loss, >= 0.
        warmup: share of the training before the loss is added, 0..1.
        stages: 'all', or positions among the stages that merge (-1: the last), whose merging
            blocks all count, each with its own clusters: a later block's loss says little to an
            earlier one. Frozen blocks have no loss.
        num_classes: background included; None: one more than the training set's classes.
        **options: ``centroids``, ``temperature``, ``beta``, ``decay`` of
            :class:`ltm_mm.models.losses.DenseIBLoss`.

    Raises:
        ValueError: if an argument is out of range.
    """

    priority = "NORMAL"

    def __init__(
        self,
        bound: str = "paper",
        weight: float = 0.1,
        warmup: float = 0.3,
        stages: str | Sequence[int] = "all",
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight must be >= 0, got {weight!r}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the training from 0 to 1, got {warmup!r}")
        if stages != "all" and (isinstance(stages, str) or not stages):
            raise ValueError(f"stages must be 'all' or a list of positions, got {stages!r}")
        self.weight, self.warmup, self.stages = weight, warmup, stages
        self.num_classes: Any = num_classes  # a number from the start of training on
        self.make = partial(DenseIBLoss, bound=bound, **options)
        self.make(dim=1, num_classes=1)  # a wrong option is reported at once
        self.losses: dict[str, DenseIBLoss] = {}
        self.saved: Mapping[str, dict] = {}
        self.model: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        """Take the model's ``loss`` along."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        try:
            self.names = choose_stages(model, self.stages)
        except ValueError as error:
            raise UserError(f"InformationBottleneck: {error}") from error
        if self.num_classes is None:
            classes = runner.train_dataloader.dataset.metainfo.get("classes") or ()
            if not classes:
                raise UserError(
                    "InformationBottleneck: the training set names no classes; set num_classes"
                )
            self.num_classes = len(classes) + 1
        if not runner.iter:
            self.saved = {}  # a run that starts from another's weights finds its own clusters
        self.model = model
        model.loss = partial(self._loss, model.loss, runner)

    def after_train(self, runner: Runner) -> None:
        """Give the model its own ``loss`` back."""
        if self.model is not None:
            del self.model.loss  # the instance's; the class's shows again
            self.model = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the estimates beside the weights."""
        states = {name: loss.state_dict() for name, loss in self.losses.items()}
        checkpoint[KEY] = {
            name: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
            for name, state in {**self.saved, **states}.items()
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take them from a checkpoint, in case that training goes on from it."""
        self.saved = checkpoint.get(KEY, {})

    def _loss(
        self,
        original: Callable,
        runner: Runner,
        inputs: Tensor,
        data_samples: Sequence,
        *args: object,
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The model's losses and the bottleneck's."""
        assert self.model is not None
        size = (inputs.shape[-2], inputs.shape[-1])
        with record_merges(self.model) as merges:
            losses = original(inputs, data_samples, *args, **kwargs)
        pixels = pixel_labels(data_samples, size, self.num_classes, inputs.device)
        active = self.weight > 0 and runner.iter >= self.warmup * runner.max_iters
        learning = self._learning(merges)
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            bound = torch.stack(self._bounds(learning, pixels)).mean()
        loss = self.weight * bound if active else torch.zeros_like(bound)
        return {**losses, "loss_ib": loss, "ib_bound": bound.detach()}

    def _learning(self, merges: Sequence[tuple[str, Merge]]) -> list[tuple[str, Merge]]:
        """The chosen merges, but those of frozen blocks: nothing is to be learned from them."""
        chosen = [(name, merge) for name, merge in merges if name in self.names]
        if torch.is_grad_enabled():
            chosen = [(name, merge) for name, merge in chosen if merge.merged.requires_grad]
        if not chosen:
            raise UserError(
                "InformationBottleneck: no merged token of its stages carries a gradient: they are "
                "all frozen (frozen_stages), or under re-entrant activation checkpointing (use "
                "the backbone's with_cp)"
            )
        return chosen

    def _bounds(self, merges: Sequence[tuple[str, Merge]], pixels: Tensor) -> list[Tensor]:
        """The bound of each merge's tokens."""
        counts: dict[tuple, Tensor] = {}  # merges of one stage have one grid
        values = []
        for name, merge in merges:
            key = (merge.grid, len(merge.merged))
            with torch.no_grad():
                if key not in counts:
                    counts[key] = grid_counts(merge, pixels, self.num_classes)
                labels = merged_labels(merge, counts[key]).flatten()
                inputs = place_tokens(merge).flatten(0, 1)
            merged = merge.merged.flatten(0, 1)
            loss = self._loss_of(name, merged.shape[1], merged.device)
            values.append(loss(merged, labels, inputs))
        return values

    def _loss_of(self, name: str, dim: int, device: torch.device) -> DenseIBLoss:
        """The loss module of a block, made when its first tokens say how wide they are."""
        if name not in self.losses:
            loss = self.make(dim=dim, num_classes=self.num_classes)
            if name in self.saved:
                try:
                    loss.load_state_dict(self.saved[name])
                except RuntimeError as error:
                    raise UserError(
                        "InformationBottleneck: the checkpoint's estimates do not fit; resume with "
                        f"the options of that run ({' '.join(str(error).split())})"
                    ) from error
            self.losses[name] = loss.to(device)
        return self.losses[name]


def place_tokens(merge: Any) -> Tensor:
    """One input token of every merged token ``(B, M, C)``: the one that stands for its place.

    It is the one that a group began with. The paper's bound needs one input per sample, and only
    for a term that is constant.
    """
    tokens = merge.tokens
    if isinstance(merge, GridMerge):  # the one at the middle of each cell
        sizes = zip(tokens.shape[1:3], merge.merged_grid.shape[1:3], strict=True)
        rows, cols = (
            ((torch.arange(k, device=tokens.device) + 0.5) * n / k).long() for n, k in sizes
        )
        return tokens[:, rows][:, :, cols].flatten(1, 2)
    if tokens.dim() == 3:  # of a whole image
        return take_groups(tokens, merge.mask.roots)
    return take_groups(merge.windows.cut(tokens), merge.mask.roots).flatten(1, 2)


def use_ib(cfg: dict, bound: str) -> None:
    """Add the loss to a config, or take it out, in place.

    Args:
        cfg: of any detector or segmentor.
        bound: 'paper', 'variational' or 'none'. Other options of a hook that is there stay.

    Raises:
        UserError: if ``bound`` is none of these.
    """
    if bound not in (*BOUNDS, "none"):
        raise UserError(f"--ib {bound}: give none, {' or '.join(BOUNDS)}")
    hooks = list(cfg.get("custom_hooks") or [])
    bottlenecks = [h for h in hooks if str(h.get("type")).endswith(InformationBottleneck.__name__)]
    if bound == "none":
        cfg["custom_hooks"] = [h for h in hooks if h not in bottlenecks]
    elif bottlenecks:
        bottlenecks[0]["bound"] = bound
    else:
        hook = dict(type=f"ltm_mm.{InformationBottleneck.__name__}", bound=bound)
        cfg["custom_hooks"] = [*hooks, hook]

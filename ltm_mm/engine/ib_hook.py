"""The information-bottleneck loss on any detector or segmentor, by configuration (ours)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..models.losses import BOUNDS, DenseIBLoss
from ..models.losses.token_labels import majority, pixel_labels
from ..registry import HOOKS
from .capture import Caught, catch_merges, choose_stages
from .errors import UserError

KEY = "information_bottleneck"


@HOOKS.register_module()
class InformationBottleneck(Hook):
    """Adds ``loss_ib`` to what the model's ``loss`` returns, while it is trained.

    ::

        custom_hooks = [dict(type='ltm_mm.InformationBottleneck', bound='paper')]

    The model stays as it is: merged tokens are read by forward hooks, the labels come from
    the batch's ground truth, and the loss goes through the model's own ``loss`` so that
    distributed training, mixed precision and gradient accumulation see one loss more. The
    estimates belong to the training run, not to the model: they lie beside the state dict
    in the checkpoint, come back with ``--resume``, and a model without the loss loads the
    same weights. During warm-up they are kept already, and ``ib_bound`` is logged; then
    ``loss_ib`` is ``weight * ib_bound``.

    Args:
        bound: 'paper' or 'variational', see :mod:`ltm_mm.models.losses.information`.
        weight: of the loss, >= 0.
        warmup: share of the training before the loss is added, 0..1.
        stages: 'all', or positions among the stages that merge (-1: the last). By default
            all, each with its own clusters, because the bound is what every mask module is
            meant to descend, and a later stage's loss says little to an earlier mask.
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
        **options: float,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight must be >= 0, got {weight!r}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the training from 0 to 1, got {warmup!r}")
        if stages != "all" and (isinstance(stages, str) or not stages):
            raise ValueError(f"stages must be 'all' or a list of positions, got {stages!r}")
        self.weight, self.warmup, self.stages = weight, warmup, stages
        self.num_classes = num_classes
        self.make = partial(DenseIBLoss, bound=bound, **options)
        self.make(dim=1, num_classes=1)  # a wrong option is told at once
        self.losses: dict[str, DenseIBLoss] = {}
        self.saved: Mapping[str, dict] = {}
        self.model: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        """Take the model's ``loss`` along."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        try:
            mergers = choose_stages(model, self.stages)
        except ValueError as error:
            raise UserError(f"InformationBottleneck: {error}") from error
        # A frozen stage's tokens have no gradient: there is nothing to learn from them.
        self.names = [n for n, m in mergers.items() if any(p.requires_grad for p in m.parameters())]
        if not self.names:
            raise UserError("InformationBottleneck: all its stages are frozen (frozen_stages)")
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
        with catch_merges(self.model, size) as caught:
            losses = original(inputs, data_samples, *args, **kwargs)
        pixels = pixel_labels(data_samples, size, self.num_classes, inputs.device)
        active = self.weight > 0 and runner.iter >= self.warmup * runner.max_iters
        with torch.set_grad_enabled(active and torch.is_grad_enabled()):
            values = [self._bound(c, pixels) for c in caught if c.name in self.names]
            bound = torch.stack(values).mean()
        loss = self.weight * bound if active else torch.zeros_like(bound)
        return {**losses, "loss_ib": loss, "ib_bound": bound.detach()}

    def _bound(self, caught: Caught, pixels: Tensor) -> Tensor:
        """The bound of one merge's slots."""
        slots = caught.merge.slots
        _, height, width, dim = slots.shape
        if torch.is_grad_enabled() and not slots.requires_grad:
            raise UserError(
                f"InformationBottleneck: the tokens of {caught.name} carry no gradient; use the "
                "backbone's with_cp instead of re-entrant activation checkpointing"
            )
        with torch.no_grad():
            labels = majority(caught.slot_counts(pixels, self.num_classes))
        inputs = centre_tokens(caught.merge.tokens, height, width)
        loss = self._loss_of(caught.name, dim, slots.device)
        return loss(slots.reshape(-1, dim), labels.flatten(), inputs.reshape(-1, dim))

    def _loss_of(self, name: str, dim: int, device: torch.device) -> DenseIBLoss:
        """The loss module of a merger, made when its first tokens say how wide they are."""
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


def centre_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """The token at each slot's centre, ``(B, H, W, C)`` -> ``(B, height, width, C)``."""
    rows, cols = (
        ((torch.arange(k, device=tokens.device) + 0.5) * n / k).long()
        for n, k in zip(tokens.shape[1:3], (height, width), strict=True)
    )
    return tokens[:, rows][:, :, cols]


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
    found = [h for h in hooks if str(h.get("type")).endswith(InformationBottleneck.__name__)]
    if bound == "none":
        cfg["custom_hooks"] = [h for h in hooks if h not in found]
    elif found:
        found[0]["bound"] = bound
    else:
        hook = dict(type=f"ltm_mm.{InformationBottleneck.__name__}", bound=bound)
        cfg["custom_hooks"] = [*hooks, hook]

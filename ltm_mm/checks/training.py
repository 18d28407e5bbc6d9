"""Whether a config can train: its lengths, schedule, optimizer and files."""

import difflib
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from ..errors import UserError, no_such_type, swapped_argument

# What mmengine's DefaultOptimWrapperConstructor reads.
PARAMWISE = (
    "custom_keys",
    "bias_lr_mult",
    "bias_decay_mult",
    "norm_decay_mult",
    "flat_decay_mult",
    "dwconv_decay_mult",
    "dcn_offset_lr_mult",
    "bypass_duplicate",
)


def check_training(cfg: Config, checkpoint: str | None) -> None:
    """Refuse, before anything is built, a config that cannot train.

    Args:
        cfg: as the command line has changed it.
        checkpoint: weights to start from.

    Raises:
        UserError: names the option.
    """
    require(cfg, "train_dataloader", "train_cfg", "optim_wrapper")
    check_runtime(cfg)
    check_lengths(cfg)
    check_optimizer(cfg)
    for file in (checkpoint, cfg.get("load_from")):
        if file:
            require_file(file)


def check_testing(cfg: Config, checkpoint: str) -> None:
    """Refuse, before anything is built, a config or checkpoint that cannot be tested."""
    require(cfg, "test_dataloader", "test_cfg", "test_evaluator")
    check_runtime(cfg)
    require_file(checkpoint)


def check_runtime(cfg: Config) -> None:
    """Refuse settings of a run that mmengine would end in a traceback for.

    Raises:
        UserError: names the option.
    """
    seed = (cfg.get("randomness") or {}).get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise UserError(f"randomness.seed must be an integer from 0 to 4294967295, got {seed!r}")
    level = cfg.get("log_level", "INFO")
    if type(level) is not int and not isinstance(logging.getLevelName(level), int):
        raise UserError(f"log_level must be DEBUG, INFO, WARNING or ERROR, got {level!r}")
    scope = cfg.get("default_scope")
    if scope is not None and (not str(scope).isidentifier() or find_spec(scope) is None):
        raise UserError(f"default_scope is {scope!r}, and no package of that name is installed")


def require(cfg: Config, *keys: str) -> None:
    """Raise a UserError if a config lacks something that is needed."""
    for key in keys:
        if not cfg.get(key):
            raise UserError(f"{cfg.filename} has no {key}, which is needed here")


def require_file(checkpoint: str) -> None:
    """Raise a UserError if a checkpoint is no file; an address passes."""
    if swapped := swapped_argument(checkpoint, "checkpoint"):
        raise UserError(swapped)
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        raise UserError(f"checkpoint {checkpoint} is a folder: name the file in it")
    if "://" not in checkpoint and not path.is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist")


def check_lengths(cfg: Config) -> None:
    """Refuse a training of no steps, intervals and milestones that are never reached, and a
    validation that is set up by half.

    Raises:
        UserError: names the option.
    """
    for key in ("max_epochs", "max_iters", "val_interval"):
        if cfg.train_cfg.get(key) is not None:
            _check_count(f"train_cfg.{key}", cfg.train_cfg[key])
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if isinstance(hook, Mapping) and "interval" in hook:
            last_only = name == "checkpoint" and hook["interval"] == -1  # mmengine's own default
            if not last_only:
                _check_count(f"default_hooks.{name}.interval", hook["interval"])
    _check_milestones(cfg.get("param_scheduler"), "param_scheduler")
    for split in ("val", "test"):
        names = [f"{split}_{part}" for part in ("dataloader", "cfg", "evaluator")]
        lacking = [name for name in names if cfg.get(name) is None]
        if 0 < len(lacking) < 3:
            raise UserError(
                f"{', '.join(names)}: give all three, or None for all three; {lacking[0]} is None"
            )


def _check_count(option: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{option} must be an integer >= 1, got {value!r}")


def _check_milestones(schedule: object, path: str) -> None:
    """mmengine takes a text for its letters, which no step is equal to, and any order."""
    if isinstance(schedule, Mapping) and "milestones" in schedule:
        steps = schedule["milestones"]
        numbers = isinstance(steps, (list, tuple)) and all(type(s) is int and s >= 0 for s in steps)
        if not numbers or list(steps) != sorted(set(steps)):
            raise UserError(
                f"{path}.milestones must be a list of ascending integers, such as [8, 11], got "
                f"{steps!r}"
            )
    elif isinstance(schedule, Mapping):
        for key in ("start_factor", "factor"):
            if schedule.get(key) == 0:  # each rate is the last one, multiplied
                raise UserError(f"{path}.{key} is 0: the learning rate would stay 0; give 0.001")
        for key, part in schedule.items():
            _check_milestones(part, f"{path}.{key}")
    elif isinstance(schedule, (list, tuple)):
        for index, part in enumerate(schedule):
            _check_milestones(part, f"{path}.{index}")


def check_optimizer(cfg: Config) -> None:
    """Refuse an optimizer or an option of it that does not exist.

    mmengine's message does not name the optimizer, and it ignores unknown options.

    Raises:
        UserError: names what was probably meant.
    """
    optimizer_type = (cfg.optim_wrapper.get("optimizer") or {}).get("type")
    with OPTIMIZERS.switch_scope_and_registry(cfg.get("default_scope")) as known:
        if isinstance(optimizer_type, str) and known.get(optimizer_type) is None:
            raise UserError(no_such_type(optimizer_type, "optimizer"))
    steps = cfg.optim_wrapper.get("accumulative_counts", 1)
    _check_count("optim_wrapper.accumulative_counts", steps)
    if cfg.optim_wrapper.get("constructor") in (None, "DefaultOptimWrapperConstructor"):
        for key in cfg.optim_wrapper.get("paramwise_cfg") or ():
            if key not in PARAMWISE:  # which mmengine would pass over
                near = difflib.get_close_matches(key, PARAMWISE, n=2)
                raise UserError(
                    f"optim_wrapper.paramwise_cfg takes no {key!r}: "
                    + (f"did you mean {' or '.join(near)}?" if near else ", ".join(PARAMWISE))
                )

"""mmengine's ``FlexibleRunner``: one device, DDP, or FSDP, which spreads a model over ranks.

It builds its model when training starts. Here it is built at once, so that data, checkpoints and
hooks are validated before the first step as with the ordinary runner.
"""

from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.distributed.fsdp import FullyShardedDataParallel

from ..errors import UserError

FSDP, DDP = "FSDPStrategy", "DDPStrategy"


def is_flexible(cfg: Config) -> bool:
    """Whether a config asks for mmengine's ``FlexibleRunner``."""
    return str(cfg.get("runner_type", "")).rpartition(".")[2] == "FlexibleRunner"


def choose_strategy(cfg: Config, launcher: str) -> None:
    """Complete a config's strategy, in place.

    Several ranks without one would train each on its own; and checkpoints in pieces could be read
    by no other tool, so FSDP saves whole ones.

    Raises:
        UserError: if the strategy needs several ranks and there is no launcher.
    """
    strategy = cfg.get("strategy") or {}
    strategy_type = str(strategy.get("type", "")).rpartition(".")[2]
    if launcher == "none" and strategy_type in (FSDP, DDP):
        raise UserError(
            f"strategy.type {strategy_type} is for several ranks: start it with "
            "tools/dist_train.sh, or leave strategy out"
        )
    if launcher != "none" and not strategy_type:
        cfg.strategy = dict(type=DDP)
    if strategy_type == FSDP and not strategy.get("state_dict_cfg"):
        cfg.strategy.state_dict_cfg = "full"


def build_model(runner: Runner | FlexibleRunner, find_unused: bool, testing: bool) -> None:
    """Build and initialise the model of a ``FlexibleRunner``; another runner has its own.

    Args:
        runner: before training or testing.
        find_unused: whether DDP is to look for parameters without a gradient.
        testing: whether a checkpoint with all weights follows.
    """
    if not isinstance(runner, FlexibleRunner):
        return
    strategy = runner.strategy
    runner.model = strategy.build_model(runner.model)
    if testing:
        runner.cfg.init_weights_for_test_or_val = False
    if not hasattr(strategy, "model_wrapper"):
        return
    fsdp = isinstance(strategy, FSDPStrategy)
    wrapper: dict[str, Any] = dict(type="MMFullyShardedDataParallel") if fsdp else dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
    )  # fmt: skip
    wrapper |= strategy.model_wrapper or {}
    if get_device() == "cpu":  # which has no number, as a GPU has
        wrapper |= dict(device_id=torch.device("cpu")) if fsdp else dict(device_ids=None)
        for config in ("state_dict_config", "optim_state_dict_config") if fsdp else ():
            # "Offloaded" to the CPU they would be views of memory that FSDP then frees.
            getattr(strategy, config).offload_to_cpu = False
    strategy.model_wrapper = wrapper
    if fsdp:
        strategy.load_optim_state_dict = partial(_load_optimizer, strategy)


def _load_optimizer(strategy: FSDPStrategy, state: dict) -> None:
    """FSDP's state of the optimizer; mmengine gives PyTorch the arguments in their old order."""
    optimizer = strategy.optim_wrapper.optimizer
    loaded = FullyShardedDataParallel.optim_state_dict_to_load(strategy.model, optimizer, state)
    strategy.optim_wrapper.load_state_dict(loaded)

"""Several processes that train or test one model: how they start, share a CPU, and end."""

import gc
import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..errors import UserError

# What a launcher's processes find in their environment, and what starts them.
LAUNCHERS = {
    "pytorch": ("RANK", "torchrun: use tools/dist_train.sh or dist_test.sh"),
    "slurm": ("SLURM_PROCID", "a Slurm job: start it with srun"),
    "mpi": ("OMPI_COMM_WORLD_LOCAL_RANK", "Open MPI: start it with mpirun"),
}


def check_launcher(launcher: str) -> None:
    """Raise a UserError if this process was not started as a launcher's would be."""
    if launcher == "none":
        return
    variable, what = LAUNCHERS[launcher]
    if variable not in os.environ:
        raise UserError(f"--launcher {launcher} needs {what} ({variable} is not set)")
    if launcher != "pytorch" and get_device() == "cpu":
        raise UserError(
            f"--launcher {launcher} needs a GPU per rank, and none is visible; ranks share CPUs "
            "with tools/dist_train.sh"
        )


def use_cpu_ranks(cfg: Config) -> None:
    """mmengine's launcher wants a GPU per rank; without one, ranks share the CPU over gloo."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    wrapper = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get("model_wrapper_cfg") or {}), "device_ids": None}
    if _replace_type(cfg.model, "SyncBN", "BN"):
        print_once("no GPU: SyncBN, which needs one, is BN here, with statistics per rank")


def leave_ranks() -> None:
    """End the process group; after success only, as ranks that failed are not waited for.

    Where Python's end finds PyTorch's threads at work, the rank is killed after all its work
    ("terminate called without an active exception").
    """
    if torch.distributed.is_initialized():
        gc.collect()  # of the model, whose wrapper holds the group
        torch.distributed.destroy_process_group()


def print_once(line: str) -> None:
    """Print a line once, however many ranks there are."""
    if not int(os.environ.get("RANK", 0)):
        print(line, flush=True)


def _replace_type(node: object, old: str, new: str) -> int:
    """Exchange a type's name everywhere below ``node``; returns how often."""
    count = 0
    if isinstance(node, dict):
        if node.get("type") == old:
            node["type"] = new
            count = 1
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        count += sum(_replace_type(child, old, new) for child in node)
    return count

"""Two gloo ranks with half a batch each, and one process with all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from ltm_mm.models.losses import DenseIBLoss

BOUNDS = ("paper", "variational")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches; a different share of each half is without a label."""
    torch.manual_seed(0)
    tokens = torch.randn(3, 120, 12)
    labels = torch.randint(-1, 3, (3, 120))
    labels[1, :40] = -1
    labels[2, :60] = -1  # nothing for the first rank
    return list(zip(tokens, labels, strict=True))


def steps(bound: str, part: slice) -> dict:
    """Values, gradients of the last tokens, and the state after all batches."""
    loss = DenseIBLoss(12, 3, bound, centroids=10)
    values = []
    for tokens, labels in batches():
        x = tokens[part].requires_grad_()
        value = loss(x, labels[part])
        value.backward()
        values.append(value.detach())
    return {"values": torch.stack(values), "gradient": x.grad, "state": loss.state_dict()}


def work(rank: int, folder: str) -> None:
    """What a rank does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = slice(60 * rank, 60 * rank + 60)
    torch.save({b: steps(b, half) for b in BOUNDS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for bound in BOUNDS:
        alone = steps(bound, slice(None))
        one, other = (rank[bound] for rank in ranks)
        assert_close(one["state"], other["state"], rtol=0, atol=0)
        assert_close(one["state"], alone["state"], rtol=1e-4, atol=1e-6)
        assert one["state"]["_extra_state"] == 3
        # The ranks' mean is the whole batch's value, and so are their averaged gradients.
        assert_close((one["values"] + other["values"]) / 2, alone["values"], rtol=1e-4, atol=1e-6)
        assert not torch.isclose(one["values"], other["values"]).any()
        halves = torch.cat([one["gradient"], other["gradient"]]) / 2
        assert_close(halves, alone["gradient"], rtol=1e-3, atol=1e-7)

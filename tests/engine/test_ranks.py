"""The end of a program of several ranks."""

import gc
import weakref
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ltm_mm.engine import leave_ranks


def test_the_group_ends_after_the_model_that_holds_it(tmp_path: Path) -> None:
    leave_ranks()  # one process: nothing to leave
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    gc.disable()
    try:
        wrapped = DistributedDataParallel(nn.Linear(2, 2))
        wrapped(torch.ones(1, 2)).sum().backward()
        wrapped.runner = wrapped  # as runners, hooks and models hold one another
        held = weakref.ref(wrapped)
        del wrapped
        assert held() is not None
        leave_ranks()
    finally:
        gc.enable()
    assert held() is None
    assert not distributed.is_initialized()

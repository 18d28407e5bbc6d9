"""Do something on the way without changing what is drawn at random afterwards (ours)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Let what is drawn within not change what is drawn afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (mmdet's source)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

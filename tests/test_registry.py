"""`type='ltm_mm.LTMSwin'` resolves without `custom_imports`, in a fresh interpreter."""

import subprocess
import sys

import pytest

SCRIPT = """
import ltm_mm
assert not any(name.startswith("ltm_mm.models") for name in __import__("sys").modules)
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
init_default_scope({scope!r})
from {scope}.registry import MODELS
backbone = MODELS.build(ConfigDict(type='ltm_mm.LTMSwin', keep=(None, None, 25, None),
                                   embed_dims=12, num_heads=(1, 1, 1, 1)))
print(type(backbone).__name__, backbone.plan[2])
"""


SLOW = [pytest.param(scope, marks=pytest.mark.slow) for scope in ("mmdet", "mmseg")]


@pytest.mark.parametrize("scope", ["mmengine", *SLOW])
def test_builds_from_any_scope(scope):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(scope=scope)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["LTMSwin (25, 25, 25, 25, 25, 25)"], done.stderr[
        -2000:
    ]

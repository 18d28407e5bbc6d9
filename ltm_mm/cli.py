"""The console commands ``ltm-train``, ``ltm-test``, ...: each runs the tool of its name."""

import runpy
import sys
from functools import partial
from pathlib import Path

TOOLS = Path(__file__).parent / ".mim" / "tools"  # in a checkout a link to its tools/


def run(tool: str) -> None:
    """Run ``tools/<tool>.py`` as a program, with this process's arguments."""
    path = TOOLS / f"{tool}.py"
    sys.argv[0] = str(path)
    runpy.run_path(str(path), run_name="__main__")


train = partial(run, "train")
test = partial(run, "test")
predict = partial(run, "predict")
benchmark = partial(run, "benchmark")
fidelity = partial(run, "fidelity")
learn = partial(run, "learn")
plan = partial(run, "plan")
visualize = partial(run, "visualize")
report = partial(run, "report")
export = partial(run, "export")

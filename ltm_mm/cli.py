"""The console commands ``ltm-train``, ``ltm-test``, ...: each runs the tool of its name."""

import runpy
import sys
from functools import partial
from pathlib import Path

TOOLS = Path(__file__).parent / ".mim" / "tools"  # in a checkout a link to its tools/
MM = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")


def run(tool: str) -> None:
    """Run ``tools/<tool>.py`` as a program, with this process's arguments.

    Raises:
        SystemExit: as the tool does; with one line if a package of OpenMMLab is missing.
    """
    path = TOOLS / f"{tool}.py"
    sys.argv[0] = str(path)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in MM:
            raise
        sys.exit(f"ltm-{tool}: {package} is not installed: pip install 'ltm_mm[mm]'")


train = partial(run, "train")
test = partial(run, "test")
predict = partial(run, "predict")
benchmark = partial(run, "benchmark")
fidelity = partial(run, "fidelity")
plan = partial(run, "plan")
visualize = partial(run, "visualize")
report = partial(run, "report")
export = partial(run, "export")

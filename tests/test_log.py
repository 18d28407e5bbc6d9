"""The console has what one asks about; the log file and ``--debug`` have all."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log

from ltm_mm.engine import train
from ltm_mm.errors import clean_errors
from ltm_mm.log import NOISE, quiet_log
from tests.conftest import forget_runs
from tests.engine.conftest import (  # noqa: F401  (fixtures)
    SHAPES_CONFIG,
    _one_thread,
    options,
    shapes,
)

SMALL = {
    "train_dataloader.dataset.pipeline.2.scale": (96, 96),
    "val_dataloader.dataset.pipeline.1.scale": (96, 96),
    "model.train_cfg.rpn_proposal.max_per_img": 10,
    "model.train_cfg.rcnn.sampler.num": 8,
    "model.test_cfg.rpn.max_per_img": 10,
}


@pytest.mark.parametrize("debug", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_prints_what_one_asks_about(
    debug: bool,
    options: Callable,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    with clean_errors(debug=debug):
        runner = train(SHAPES_CONFIG, str(tmp_path), cfg_options={**options(), **SMALL})
    console = "".join(capfd.readouterr())
    log = (Path(runner.log_dir) / f"{runner.timestamp}.log").read_text()
    for part in ("Epoch(train)", "coco/bbox_mAP: ", "LTMSwin, keep='balanced'", "4 images"):
        assert part in console
    for part in ("Hooks will be executed", "System environment", "paramwise_options -- "):
        assert (part in console) == debug
        assert part in log
    assert ("creating index..." in console) == debug
    if not debug:
        assert len(console.splitlines()) < 60


def test_it_ends_with_the_block(capsys: pytest.CaptureFixture) -> None:
    own = MMLogger.callHandlers
    for debug, printed in ((False, False), (True, True)):
        with quiet_log(debug), warnings.catch_warnings(record=True) as warned:
            print_log("Hooks will be executed in the following order: ...", "current")
            print_log("Could not import OneDL", None)
            warnings.warn("of another package", stacklevel=1)
        said = "".join(capsys.readouterr())
        assert ("Hooks will be" in said) == ("OneDL" in said) == printed
        assert bool(warned) == printed
    assert MMLogger.callHandlers is own
    print_log("Could not import OneDL", None)
    assert "OneDL" in capsys.readouterr().out
    forget_runs()


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_all_other_lines_are_printed(level: int, capsys: pytest.CaptureFixture) -> None:
    with quiet_log():
        print_log("3 images are left out", "current", level)
    assert "3 images are left out" in "".join(capsys.readouterr())
    assert not any("error" in line.lower() for line in NOISE)
    forget_runs()

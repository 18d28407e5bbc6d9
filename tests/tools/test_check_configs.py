"""The table of configs that run with merging, and the command that writes it."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from ltm_mm.engine.config import load_config
from ltm_mm.engine.convert import use_ltm
from tests.conftest import ROOT
from tools import check_configs as coverage

PAGE, TABLE = ROOT / "docs" / "configs.md", ROOT / "docs" / "configs.csv"
# (package, model) of the rows that have to run, whatever else the installed packages bring.
NAMED = {
    ("mmdet", "MaskRCNN"),
    ("mmdet", "CascadeRCNN"),
    ("mmdet", "RetinaNet"),
    ("mmdet", "ATSS"),
    ("mmdet", "Mask2Former"),
    ("mmdet", "DINO"),
    ("mmseg", "EncoderDecoder + UPerHead"),
    ("mmseg", "EncoderDecoder + Mask2FormerHead"),
}


def table(file: Path) -> list[list[str]]:
    """The rows of a CSV file of the tool."""
    with file.open(newline="") as lines:
        columns, *rows = csv.reader(lines)
    assert tuple(columns) == coverage.COLUMNS
    return rows


def masked(rows: list[list[str]]) -> list[list[str]]:
    """Without the numbers of predictions, which chance decides."""
    return [[*row[:-1], re.sub(r"\d+", "N", row[-1])] for row in rows]


def test_a_config_that_runs() -> None:
    ((row, count),) = coverage.cover(["mmdet"], "balanced", only="retinanet_swin-t")
    assert row.config == "mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"
    assert (row.model, row.problem, row.failed, count) == ("RetinaNet", None, False, 1)
    assert row.backbone.endswith("-> ltm_mm.LTMSwin (keep='balanced')")
    assert row.losses is not None
    assert row.losses > 0
    assert row.outputs == "100 instances"
    assert coverage.to_cells(row, count)[2:] == ["RetinaNet", "yes", "finite", "100 instances"]


def test_a_config_that_fails() -> None:
    """A failure that merging causes is one of the table; one of the config itself is not."""
    name = "mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"
    cfg = load_config(name)
    (change,) = use_ltm(cfg, "balanced")
    cfg.model.backbone.keep = 99
    row = coverage.try_config(name, cfg, change)
    assert row.failed
    assert row.problem is not None
    assert row.problem.startswith("ValueError: ")

    cfg = load_config(name)
    use_ltm(cfg, "balanced")
    cfg.model.neck = ConfigDict(type="NoSuchNeck")
    assert coverage.try_config(name, cfg, change).failed  # the shipped config has a neck


class Dino(nn.Module):
    """As mmdet's, whose level embedding is what the memory held until weights are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.full((4, 8), torch.nan))

    def init_weights(self) -> None:
        nn.init.ones_(self.level_embed)


def test_a_level_embedding_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage.MODELS, "build", lambda cfg: Dino())
    monkeypatch.setattr(coverage, "_run_detector", lambda m, *_: (m.level_embed.sum().item(), "1"))
    name = "mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"
    assert coverage.try_config(name, load_config(name), "").losses == 32


def test_the_page_summarizes_the_table() -> None:
    rows = table(TABLE)
    assert coverage.summarize(rows) in PAGE.read_text()
    run = {(row[0].split("::")[0], row[2]) for row in rows if row[3] == "yes"}
    assert run >= NAMED


@pytest.mark.slow
@pytest.mark.timeout(3000)  # every config at full width
def test_the_table_is_what_the_command_writes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_configs.py"), "--out", "configs.csv"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert masked(table(tmp_path / "configs.csv")) == masked(table(TABLE))
    assert done.stdout.strip() in PAGE.read_text()

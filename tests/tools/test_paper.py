"""The preset 'paper' does the paper's work, counted; nothing is drawn or computed (meta)."""

import pytest
import timm
import torch
from torch import nn

from ltm_mm.analysis.benchmark.flops import count_macs
from ltm_mm.families import FAMILIES
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from tools import flops
from tools.flops import POINTS, Point, measure, to_markdown

BACKBONES = dict(swin=LTMSwin, vit=LTMViT, efficientvit=LTMEfficientViT, mobilevit=LTMMobileViT)


SMALL = ("ltm_swin_tiny", "ltm_efficientvit_b1", "ltm_mobilevit_xs", "ltm_vit_small")


@pytest.mark.parametrize(
    "point",
    [p if p.model in SMALL else pytest.param(p, marks=pytest.mark.slow) for p in POINTS],
    ids=lambda p: f"{p.model}-{p.size}",
)
def test_work_and_parameters_are_the_papers(point: Point) -> None:
    with torch.device("meta"):
        figures = measure(point)
    if "mobilevit" in point.model:
        # The paper's count of the plain network is 0.69 of ours: its share is met.
        assert figures.macs / figures.plain_macs == pytest.approx(
            point.merged / point.plain, rel=0.03
        )
        assert figures.plain_macs > point.plain * 1.4
    else:
        assert figures.macs == pytest.approx(point.merged, rel=0.03)
    # Matching has no parameters, an EfficientViT's masks have.
    learns = "efficientvit" in point.model
    assert (figures.parameters > figures.plain_parameters) == learns
    assert figures.parameters < 1.02 * figures.plain_parameters


def test_mobilevit_cannot_do_the_papers_absolute_work() -> None:
    """What lies outside the transformers, or must come before a merge, is more already."""
    for name, goal in (("mobilevit_xs", 0.52), ("mobilevit_s", 1.17)):
        with torch.device("meta"):
            macs = count_macs(timm.create_model(name), torch.zeros(1, 3, 256, 256))
        inside = {k: v for k, v in macs.by_module.items() if k.endswith(".transformer")}
        before = sum(macs.by_module[f"{k}.0.attn"] for k in inside)
        assert (macs.total - sum(inside.values()) + before) / 1e9 > goal


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.model}-{p.size}")
def test_backbone_and_classifier_have_one_plan(point: Point) -> None:
    _, family, arch = point.model.split("_")
    with torch.device("meta"):
        backbone = BACKBONES[family](arch=arch, keep="paper")
        model = timm.create_model(point.model, keep="paper")

    def kept(module: nn.Module) -> list[str]:
        """How the mask modules show, which says what they keep."""
        return [repr(m) for name, m in module.named_modules() if name.endswith("merge")]

    assert kept(backbone)
    assert kept(backbone) == kept(model)
    assert sum(len(f.paper) for f in FAMILIES.values()) == len({p.model for p in POINTS})


def test_table_and_speedup(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("ltm_mobilevit_xs", 64, 0.7, 0.52)
    figures = measure(point, rounds=1)
    assert figures.speedup is not None
    assert figures.speedup > 0
    table = to_markdown([point, point], [figures._replace(speedup=1.5)] * 2).splitlines()
    assert table[0].endswith("| speed-up |")
    assert table[2].startswith("| mobilevit-xs, 64 | 0.7* | 0.52* |")
    assert table[2].endswith("M | 1.50x |")
    seconds = dict(plain=[4.0, 6.0, 5.0], merged=[2.0, 2.0, 4.0])
    monkeypatch.setattr(flops, "interleave", lambda runs, rounds: {n: seconds[n] for n in runs})
    assert measure(point, rounds=3).speedup == 2.0  # of 2, 3 and 1.25


def test_bad_numbers_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["flops.py", "--rounds", "-1"])
    with pytest.raises(SystemExit) as stop:
        flops.main()
    assert stop.value.code
    assert "--rounds must be >= 0 and --batch >= 1, got -1 and 1" in (
        str(stop.value.code) + capsys.readouterr().err
    )

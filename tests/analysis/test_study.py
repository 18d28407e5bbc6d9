"""Studies: what a YAML file may say, schedules, going on, tables, and a real tiny study."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ltm_mm.analysis.study import (
    Run,
    _progress,
    _summary,
    estimate,
    plan_runs,
    run_studies,
    shorten,
)
from ltm_mm.analysis.study_file import Study, Variant, read_study
from ltm_mm.analysis.study_report import aggregate, cell, collect, plot, to_markdown, write_report
from ltm_mm.datasets import ensure_shapes
from ltm_mm.engine import UserError, load_config, parse_keep, use_ltm
from ltm_mm.engine.config import change_config
from ltm_mm.registry import MODELS
from tests.conftest import ROOT
from tests.tools.conftest import Tool, tool  # noqa: F401  (a fixture)

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
GOOD = {
    "config": str(ROOT / "configs" / "ltm_swin_upernet_shapes.py"),
    "seeds": [0, 1],
    "metrics": {"mIoU": "mIoU"},
    "variants": {
        "plain": {"ltm": "none"},
        "merged": {"ltm": "balanced", "from": "plain", "steps": 0},
    },
}
Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write a study, some of its entries exchanged; None leaves one out."""

    def make(**changes: object) -> Path:
        content = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return make


def test_read(write: Writer) -> None:
    study = read_study(write(baseline="plain", cfg_options={"train_dataloader.batch_size": 2}))
    assert study == Study(
        name="study",
        config=GOOD["config"],
        seeds=(0, 1),
        metrics={"mIoU": "mIoU"},
        variants={
            "plain": Variant("plain", "none", None, 1.0),
            "merged": Variant("merged", "balanced", "plain", 0.0),
        },
        baseline="plain",
        cfg_options={"train_dataloader.batch_size": 2},
    )
    plan = {"planned": {"ltm": [None, None, [49, 25], 0.5]}, "number": {"ltm": 25}}
    found = read_study(write(variants=plan)).variants
    assert [v.ltm for v in found.values()] == ["[None, None, [49, 25], 0.5]", "25"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": None}, "has no 'config'"),
        ({"metrics": None}, "has no 'metrics'"),
        ({"metrics": []}, "metrics must map"),
        ({"variants": {}}, "variants must map"),
        ({"seeds": [0, "one"]}, "seeds must be a list of ints"),
        ({"seeds": []}, "seeds must be a list of ints"),
        ({"seeds": [1, 1]}, "has one twice"),
        ({"epochs": 3}, "unknown key 'epochs'; allowed: _base_, config"),
        ({"baseline": "plane"}, "baseline 'plane' is no variant; choose from plain, merged"),
        ({"variants": {"a": {"baseline": "b"}}, "baseline": None}, "baseline 'b' is no variant"),
        ({"figure": ["AP"]}, "figure names 'AP', which is no metric; choose from mIoU"),
        ({"cfg_options": [1]}, "cfg_options must map"),
        ({"variants": {"a": {"step": 1}}}, "variant a: unknown key 'step'; allowed: ltm"),
        ({"variants": {"a": {"steps": -1}}}, "steps is a share"),
        ({"variants": {"a": {"steps": "half"}}}, "steps is a share"),
        ({"variants": {"a": {"steps": 0}}}, "'from' must name a variant"),
        ({"variants": {"a": {"from": "b"}, "b": {}}}, "'b', which is no variant above it"),
        ({"variants": {"a": {"ltm": "bold"}}}, "variant a: --ltm bold: give none, light"),
        ({"variants": {"../a": {}}}, "a name is a folder's"),
        ({"variants": {"a": 3}}, "must map keys to values"),
    ],
)
def test_mistakes(write: Writer, changes: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_study(write(**changes))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_bottleneck_of_a_variant(write: Writer, tmp_path: Path) -> None:
    """It is read, decides about the settings, and leaves those of other variants as they were."""
    study = read_study(write(variants={"plain": {"ltm": "none"}, "ib": {"ib": "paper"}}))
    assert [v.ib for v in study.variants.values()] == [None, "paper"]
    settings = [run.settings for run in plan_runs(study, tmp_path)[:2]]
    assert "ib" not in settings[0]
    assert settings[1]["ib"] == "paper"
    with pytest.raises(UserError, match="ib must be none, paper or variational, got 'tight'"):
        read_study(write(variants={"a": {"ib": "tight"}}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (
            "x - INFO - Iter(train) [ 20/300]  lr: 1\nx Iter(train) [ 40/300]",
            "Iter(train) [ 40/300]",
        ),
        ("- Epoch(train)  [2][20/63]  lr", "Epoch(train) [2][20/63]"),
        ("Iter(train) [300/300] x\n Iter(test) [ 50/100]  eta", "Iter(test) [ 50/100]"),
    ],
)
def test_progress(text: str, expected: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert _progress(log) == ""
    log.write_text(text)
    assert _progress(log) == expected


def test_a_metric_of_some_variants_only(results: tuple[Study, list[Run], Path]) -> None:
    """A plain model has no statistics of merging: its cell is empty, and the run counts."""
    study, runs, _ = results
    file = runs[1].folder / "result.json"
    result = json.loads(file.read_text())
    result["metrics"]["ltm/IB"] = 1.5
    file.write_text(json.dumps(result))
    study.metrics["IB"] = "ltm/IB"
    rows = to_markdown(study, collect(study, runs)).splitlines()
    assert rows[2].startswith("| plain | 42.0 ± 2.8 | – |")
    assert rows[3].startswith("| merged | 39.0 | 1.500 |")
    assert _summary(runs[0], study.metrics) == "mIoU 40, without ltm/IB (40 s)"


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_study(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="not valid YAML"):
        read_study(tmp_path / "bad.yaml")


def test_unknown_config(write: Writer, tmp_path: Path) -> None:
    study = read_study(write(config="configs/absent.py"))
    with pytest.raises(UserError, match="does not exist"):
        plan_runs(study, tmp_path)


def test_order_and_parents(write: Writer, tmp_path: Path) -> None:
    runs = plan_runs(read_study(write()), tmp_path)
    named = [(r.variant.name, r.seed) for r in runs]
    assert named == [("plain", 0), ("merged", 0), ("plain", 1), ("merged", 1)]
    assert [r.parent for r in runs] == [None, runs[0], None, runs[2]]
    assert runs[3].folder == tmp_path / "merged" / "seed1"


def test_shorten() -> None:
    cfg = Config(
        dict(
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=1005),
            param_scheduler=[
                dict(type="LinearLR", begin=0, end=100, start_factor=0.01),
                dict(type="MultiStepLR", begin=100, end=10**10, milestones=[600, 900]),
                dict(type="CosineAnnealingLR", T_max=905, begin=100, end=1005),
            ],
        )
    )
    assert shorten(cfg, 0.1) == {
        "train_cfg.max_iters": 100,
        "param_scheduler": [
            dict(type="LinearLR", begin=0, end=10, start_factor=0.01),
            dict(type="MultiStepLR", begin=10, end=10**10, milestones=[60, 90]),
            dict(type="CosineAnnealingLR", T_max=90, begin=10, end=100),
        ],
    }
    assert cfg.param_scheduler[0].end == 100, "the config is left as it was"
    epochs = Config(dict(train_cfg=dict(max_epochs=12), param_scheduler=dict(end=12)))
    assert shorten(epochs, 0.25) == {"train_cfg.max_epochs": 3, "param_scheduler": {"end": 3}}
    with pytest.raises(UserError, match=r"0.1 of 12 epochs is 1.2"):
        shorten(epochs, 0.1)


def test_other_settings_are_refused(write: Writer, tmp_path: Path) -> None:
    run = plan_runs(read_study(write()), tmp_path)[1]
    run.folder.mkdir(parents=True)
    (run.folder / "settings.json").write_text(json.dumps(run.settings))
    assert plan_runs(read_study(write()), tmp_path)[1].settings == run.settings
    changed = {"plain": {"ltm": "none", "cfg_options": {"optim_wrapper.optimizer.lr": 1.0}}}
    changed["merged"] = GOOD["variants"]["merged"]
    with pytest.raises(UserError, match=r"merged/seed0 was made with other settings \(from\)"):
        plan_runs(read_study(write(variants=changed)), tmp_path)


@pytest.fixture
def results(write: Writer, tmp_path: Path) -> tuple[Study, list[Run], Path]:
    """A study whose runs are finished, but for the last."""
    study = read_study(write(baseline="plain"))
    runs = plan_runs(study, tmp_path / "work")
    for run, value in zip(runs, (40.0, 39.0, 44.0), strict=False):
        run.folder.mkdir(parents=True)
        result = {"metrics": {"mIoU": value, "aAcc": 1.0}, "seconds": value}
        (run.folder / "result.json").write_text(json.dumps(result))
    return study, runs, tmp_path / "work"


def test_aggregate(results: tuple[Study, list[Run], Path]) -> None:
    study, runs, _ = results
    values = collect(study, runs)
    assert values == {"plain": {0: {"mIoU": 40.0}, 1: {"mIoU": 44.0}}, "merged": {0: {"mIoU": 39}}}
    assert cell(values, "plain", "mIoU") == (42.0, pytest.approx(8**0.5), 2)
    assert cell(values, "merged", "mIoU", "plain") == (-1.0, None, 1), "only the seed both have"
    assert aggregate([]) is None
    assert to_markdown(study, values).splitlines() == [
        "| variant | mIoU | mIoU - plain's | n |",
        "|---|---|---|---|",
        "| plain | 42.0 ± 2.8 |  | 2 |",
        "| merged | 39.0 | -1.0 | 1 |",
    ]


def test_variants_are_compared_with_their_own_baseline(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table, which names it, and in the figure, which draws the differences."""
    variants = {"plain": {}, "long": {}, "merged": {}, "merged-long": {"baseline": "long"}}
    metrics = {"mIoU": "mIoU", "AP": "AP"}
    changes = {"variants": variants, "metrics": metrics, "figure": ["AP"], "baseline": "plain"}
    study = read_study(write(**changes))
    levels = {"plain": 0.5, "long": 0.6, "merged": 0.4, "merged-long": 0.7}
    values = {v: {0: {"mIoU": 50.0, "AP": x}} for v, x in levels.items()}
    rows = to_markdown(study, values).splitlines()
    assert rows[0] == "| variant | mIoU | AP | against | change in mIoU | change in AP | n |"
    assert rows[2] == "| plain | 50.0 | 0.500 |  |  |  | 1 |"
    assert rows[5] == "| merged-long | 50.0 | 0.700 | long | +0.0 | +0.100 | 1 |"
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.scatter", lambda *a, **_: drawn.append(a[1:3]))
    plot([(study, values)], tmp_path / "study.png")
    assert drawn == [([pytest.approx(d)], [row]) for row, d in ((1, 0.1), (2, -0.1), (3, 0.1))]


def test_estimate(results: tuple[Study, list[Run], Path]) -> None:
    _, runs, _ = results
    assert estimate(runs[2], runs) == 42.0, "the mean of its variant"
    tenth = Run(Variant("tenth", steps=0.1), 0, Path("absent"), {})
    assert estimate(tenth, runs) == pytest.approx(123 / 2.05 * 0.1)
    assert estimate(tenth, []) is None


def test_report(results: tuple[Study, list[Run], Path]) -> None:
    study, runs, root = results
    write_report(study, runs, root)
    assert "| plain | 42.0 ± 2.8 |" in (root / "report.md").read_text()
    rows = (root / "report.csv").read_text().splitlines()
    assert rows[0] == "variant,metric,mean,std,n"
    assert rows[2] == "merged,mIoU,39.0,,1"
    assert json.loads((root / "report.json").read_text())["plain"]["1"] == {"mIoU": 44.0}
    assert (root / "report.png").read_bytes().startswith(b"\x89PNG")


def test_several_studies_make_one_figure(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, work = write(metrics={"mIoU": "mIoU", "aAcc": "aAcc"}), tmp_path / "work"
    paths = [path.rename(tmp_path / "a.yaml"), write()]
    for file in paths:
        for run in plan_runs(read_study(file), work / file.stem):
            run.folder.mkdir(parents=True)
            result = {"metrics": {"mIoU": 40.0, "aAcc": 1.0}, "seconds": 1.0}
            (run.folder / "result.json").write_text(json.dumps(result))
    assert run_studies([str(p) for p in paths], str(work)) == 0
    assert (work / "studies.png").read_bytes().startswith(b"\x89PNG")
    assert (work / "a" / "report.md").is_file()
    assert (work / "study" / "report.md").is_file()

    drawn = []
    monkeypatch.setattr("ltm_mm.analysis.study.plot", lambda panels, _: drawn.extend(panels))
    run_studies([str(p) for p in paths], str(work))
    assert [(s.name, s.figure) for s, _ in drawn] == [("a", ("mIoU",)), ("study", ("mIoU",))]
    assert drawn[0][1]["plain"][1] == {"mIoU": 40.0, "aAcc": 1.0}


def test_base(write: Writer, tmp_path: Path) -> None:
    write(baseline="plain", metrics={"mIoU": "mIoU", "acc": "aAcc"})
    child = tmp_path / "child.yaml"
    changes = {
        "_base_": "study.yaml",
        "seeds": [7],
        "metrics": {"acc": None},
        "variants": {"merged": None, "more": {"ltm": "fast"}},
    }
    child.write_text(yaml.safe_dump(changes))
    study = read_study(child)
    assert (study.name, study.seeds, study.baseline) == ("child", (7,), "plain")
    assert study.metrics == {"mIoU": "mIoU"}
    assert list(study.variants) == ["plain", "more"]
    child.write_text(yaml.safe_dump({"_base_": "absent.yaml"}))
    with pytest.raises(UserError, match=r"absent.yaml does not exist"):
        read_study(child)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"seeds": [1], "metrics": {"acc": "mAcc"}}))
    child.write_text(yaml.safe_dump({"_base_": ["study.yaml", "other.yaml"]}))
    study = read_study(child)
    assert (study.seeds, study.metrics) == ((1,), {"mIoU": "mIoU", "acc": "mAcc"})


@pytest.mark.parametrize("path", STUDIES, ids=[p.stem for p in STUDIES])
def test_shipped_studies(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant's backbone builds, and differs from the others' in something."""
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    runs = plan_runs(study, tmp_path)
    settings = {json.dumps(r.settings, default=str) for r in runs}
    assert len(settings) == len(runs)
    base = load_config(study.config)
    seen = {}
    for run in runs[: len(study.variants)]:
        cfg = change_config(copy.deepcopy(base), copy.deepcopy(run.settings["cfg_options"]))
        use_ltm(cfg, parse_keep(run.variant.ltm))
        with DefaultScope.overwrite_default_scope("ltm_mm"):
            backbone = MODELS.build(cfg.model.backbone)
        kinds = {type(m).__name__ for m in backbone.modules()} & {"Match", "Soft"}
        seen[run.variant.name] = (sum(map(sum, backbone.plan)), kinds, run.variant.ib)
    tokens = [seen[name][0] for name in ("none", "light", "balanced", "fast")]
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) == 4
    assert [kinds for _, kinds, _ in seen.values()] == [
        set(),
        *[{"Match"}] * 3,
        {"Soft"},
        {"Match"},
    ]
    assert seen["balanced-soft"][0] == seen["balanced-ib"][0] == seen["balanced"][0]
    assert [ib for *_, ib in seen.values()] == [*[None] * 5, "paper"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_study(tool: Tool, tmp_path: Path) -> None:  # noqa: F811
    """Real trainings: a variant that starts from another, a failure, and a second call."""
    data = str(ensure_shapes(tmp_path / "shapes", {"train": 4, "val": 2}))
    options = {
        "train_cfg.max_iters": 20,
        "param_scheduler": [],
        "train_dataloader.batch_size": 2,
    }
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = data
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
    content = {
        **GOOD,
        "seeds": [5],
        "cfg_options": options,
        "variants": {
            "plain": {"ltm": "none", "steps": 0.1},
            "broken": {"ltm": "[99, 9, 9, 9]"},
            "orphan": {"from": "broken", "steps": 0},
            "merged": {"ltm": "balanced", "from": "plain", "steps": 0},
            "tuned": {"ltm": "balanced", "from": "plain", "steps": 0.1},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    first = tool("ablate.py", "study.yaml", ok=False)
    root = tmp_path / "work_dirs" / "study"
    values = json.loads((root / "report.json").read_text())
    assert set(values["plain"]["5"]) == {"mIoU"}
    assert values["merged"]["5"]
    assert values["tuned"]["5"]
    assert values["broken"] == values["orphan"] == {}
    assert first.stdout.count("FAILED") == 2
    assert "keep of stage 0: 99 is neither" in first.stdout, "the reason is named"
    assert "Iter(train) [2/2]" in (root / "tuned/seed5/log.txt").read_text()
    assert "Iter(train)" not in (root / "merged/seed5/log.txt").read_text()
    log = (root / "tuned/seed5/log.txt").read_text()
    assert "plain/seed5/iter_2.pth" in log, "tuned starts from plain's last checkpoint"

    (root / "tuned/seed5/result.json").unlink()  # as if it had been stopped while evaluating
    second = tool("ablate.py", "study.yaml", "--only", "plain", "merged", "tuned")
    assert "3 runs, 2 finished before" in second.stdout
    assert "[1/1] tuned, seed 5" in second.stdout
    assert json.loads((root / "report.json").read_text()) == values
    log = (root / "tuned/seed5/log.txt").read_text()
    assert log.count("Iter(train) [2/2]") == 1, "it goes on from its checkpoint, trained before"

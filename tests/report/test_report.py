"""The report of a real tiny run: what the page says, and one clear line for what is broken."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ltm_mm.analysis.benchmark.report import BenchmarkRow
from ltm_mm.analysis.fidelity import report as fidelity
from ltm_mm.datasets import SHAPES
from ltm_mm.engine.commands import note_command, read_commands
from ltm_mm.errors import UserError, clean_errors
from ltm_mm.report import read_run, write_report
from ltm_mm.report.pictures import _describe
from ltm_mm.report.summary import metric_label, summary

Copy = Callable[..., Path]


@pytest.fixture
def copy(work_dir: Path, tmp_path: Path) -> Copy:
    """A copy of the run that a test may damage."""

    def make(name: str = "copy") -> Path:
        return Path(shutil.copytree(work_dir, tmp_path / name))

    return make


def first_start(folder: Path) -> Path:
    return min(p for p in folder.iterdir() if re.fullmatch(r"\d{8}_\d{6}", p.name))


def test_reads_what_the_run_left(work_dir: Path) -> None:
    run = read_run(work_dir)
    assert [entry["step"] for entry in run.train] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in run.val] == [1, 2, 3]
    assert all("loss" in entry for entry in run.train)
    # -1 is COCO's "no such objects"
    assert "coco/bbox_mAP" in run.test
    assert "coco/bbox_mAP_l" not in run.metrics or run.metrics["coco/bbox_mAP_l"] >= 0
    assert run.checkpoint == work_dir / "epoch_3.pth"
    assert run.by_epoch
    assert run.median("time") > 0
    assert run.notes == []
    facts = summary(run)
    assert facts["model"] == "MaskRCNN (FPN, StandardRoIHead)"
    assert facts["merging"] == "keep balanced, mask match"
    assert facts["schedule"] == "3 epochs"
    assert facts["optimiser"] == "AdamW, learning rate 0.002, weight decay 0.05"
    assert (facts["batch"], facts["seed"], facts["image size"]) == ("2", "0", "96 × 96")


def test_a_start_from_scratch_replaces_what_was_there(copy: Copy) -> None:
    folder = copy()
    later = folder / "29990101_000000" / "vis_data"
    shutil.copytree(first_start(folder) / "vis_data", later)
    (later / "scalars.json").write_text('{"loss": 1.5, "step": 3}\n')
    run = read_run(folder)
    assert [entry["loss"] for entry in run.train] == [1.5]
    assert (run.val, run.test) == ([], {})


def test_steps_run_again_after_a_resume_count_once(copy: Copy) -> None:
    folder = copy()
    later = folder / "29990101_000000" / "vis_data"
    shutil.copytree(first_start(folder) / "vis_data", later)
    config = (later / "config.py").read_text()
    assert "resume=False" in config  # unformatted, see conftest
    (later / "config.py").write_text(config.replace("resume=False", "resume=True"))
    (later / "scalars.json").write_text('{"loss": 1.5, "step": 4}\n')
    run = read_run(folder)
    assert [entry["step"] for entry in run.train] == [1, 2, 3, 4]
    assert run.train[-1]["loss"] == 1.5


def images_of(page: str) -> list[str]:
    return re.findall(r'<img [^>]*src="([^"]+)"', page)


def test_page_of_a_run(work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_report([str(work_dir)], str(tmp_path / "new" / "page.html"), num_images=1)
    assert path == tmp_path / "new" / "page.html"
    assert f"report: {path}" in capsys.readouterr().out
    page = path.read_text()
    # nothing is fetched from anywhere
    assert all(image.startswith("data:image/") for image in images_of(page))
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "url(" not in page
    assert "box AP50" in page
    assert "mask AP" in page
    assert page.count('<input type="range"') == 1
    assert page.count('class="map"') == 1
    assert "with merging, epoch_3.pth." in page
    assert "3 epochs" in page
    assert f"python tools/train.py {work_dir}" in page  # no command was recorded
    svg = next(i for i in images_of(page) if "svg" in i)
    assert b"<svg" in base64.b64decode(svg.partition(",")[2])


def test_page_of_two_runs(copy: Copy, work_dir: Path, tmp_path: Path) -> None:
    other = copy("other<run>")
    test = max(p for p in other.glob("*/*.json") if p.stem == p.parent.name)
    test.write_text(json.dumps({"coco/bbox_mAP": 0.512, "coco/bbox_mAP_s": 0.25}))
    rows = [BenchmarkRow("plain", 1, 10**6, {"rest": 10**9}, [0.2, 0.3], {}, 2**20)]
    rows += [BenchmarkRow("balanced", 1, 10**6, {"rest": 10**8}, [0.1, 0.15], {}, 2**20)]
    metadata = dict(cpu="a CPU", gpu=None, threads=2, torch="2.x")
    found = dict(machine=metadata, settings=dict(size=[64, 96], device="cpu"))
    (other / "b.json").write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}))
    (other / "commands.jsonl").write_text(
        '{"line": "python tools/train.py a.py", "time": "", "version": "0.1.0"}\nhalf a li'
    )
    path = write_report([str(work_dir), str(other)], str(tmp_path / "page.html"), num_images=0)
    page = path.read_text()
    assert "tiny and other&lt;run&gt;" in page
    assert '<td class="best">0.512</td>' in page
    assert "box AP small" in page
    assert "(COCO's sizes)" in page
    assert "<td>2.00x</td>" in page
    assert "64 × 96 pixels, batch 1, a CPU, 2 threads" in page
    assert ">python tools/train.py a.py</pre>" in page
    assert '<input type="range"' not in page


def test_page_shows_what_was_learned(copy: Copy, tmp_path: Path) -> None:
    folder, out = copy(), str(tmp_path / "page.html")
    rows = [
        fidelity.FidelityRow("plain", "plain", "", 10**9, [], [0.0], {"objects": 1.0}),
        fidelity.FidelityRow("fast", "plan", "fast", 10**9, [], [0.08], {"objects": 0.9}),
        fidelity.FidelityRow(
            "fast, learned", "learned", "fast", 10**9, [], [0.05], {"objects": 0.95}
        ),
    ]
    fidelity.Fidelity(rows, {}, no_faster=["fast"]).save(folder / "learned")
    page = write_report([str(folder)], out, num_images=0).read_text()
    assert "<h2>Learned</h2>" in page
    assert "<td>95.00</td>" in page
    assert "<p>Merging saves no time at this image size: fast.</p>" in page
    assert page.count('id="learned"') == page.count('href="#learned"') == 1
    (folder / "learned.json").write_text('{"rows": 1}')
    page = write_report([str(folder)], out, num_images=0).read_text()
    assert "<h2>Learned</h2>" not in page
    assert "learned.json holds no table of tools/fidelity.py" in page


@pytest.mark.slow
def test_options_change_the_page(work_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    photo = tmp_path / "photo.png"
    Image.new("RGB", (70, 50), "teal").save(photo)
    out = str(tmp_path / "page.html")
    many = write_report([str(work_dir)], out, images=[str(photo)], score_thr=0.0).read_text()
    assert "photo.png" in many
    assert re.search(r"plain: [1-9]\d* objects", many)
    none = write_report([str(work_dir)], out, images=[str(photo)], score_thr=1.0).read_text()
    assert "plain: 0 objects, merged: 0 objects" in none


@pytest.mark.slow
def test_same_names_are_told_apart(work_dir: Path, copy: Copy, tmp_path: Path) -> None:
    twin = copy("tiny")
    page = write_report(
        [str(work_dir), str(twin), str(twin)], str(tmp_path / "p.html"), num_images=0
    ).read_text()
    names = [f"{f.parent.name}/tiny" for f in (work_dir, twin)]
    for name in (*names, f"{names[1]} (2)"):
        assert f'<th scope="col">{name}</th>' in page


def test_figures_name_their_checkpoint(copy: Copy, tmp_path: Path) -> None:
    folder = copy()
    run = read_run(folder)
    assert run.tested == "epoch_3.pth"
    assert run.by_class["classes"] == list(SHAPES)
    known = [ap for ap in run.by_class["ap"]["bbox"] if ap is not None]
    assert sum(known) / len(known) == pytest.approx(run.test["coco/bbox_mAP"], abs=1e-3)
    shutil.copy(folder / "epoch_3.pth", folder / "best_of_all.pth")
    details = next(folder.glob("*/by_class.json"))
    details.write_text(details.read_text().replace("epoch_3.pth", "best_of_all.pth"))
    assert read_run(folder).checkpoint == folder / "best_of_all.pth"  # the pictures' weights
    page = write_report([str(folder)], str(tmp_path / "p.html"), num_images=0).read_text()
    assert "<small>test of best_of_all.pth</small>" in page
    assert "By class: best_of_all.pth" in page
    for name in SHAPES:
        assert f'<th scope="row">{name}</th>' in page
    assert 'alt="Confusions between classes of best_of_all.pth"' in page
    assert 'alt="Precision over recall of best_of_all.pth"' in page
    (folder / "best_of_all.pth").rename(folder / "best_of_others.pth")
    details.write_text(details.read_text().replace("best_of_all.pth", "best_of_all.onnx"))
    assert read_run(folder).checkpoint == folder / "best_of_others.pth"  # a file's are of the best
    details.write_text('{"checkpoint": "x.pth", "task": "detection", "classes": ["a"]}')
    assert "What was found per class cannot be read" in write_report(
        [str(folder)], str(tmp_path / "p.html"), num_images=0
    ).read_text().replace("&#39;", "'")
    shutil.rmtree(details.parent)
    page = write_report([str(folder)], str(tmp_path / "p.html"), num_images=0).read_text()
    assert "<small>validation after epoch 3</small>" in page
    assert "By class" not in page


def test_a_resumed_run_starts_where_it_first_started(copy: Copy) -> None:
    folder = copy()
    resumed = max(p for p in folder.glob("*/vis_data/config.py") if "resume=True" in p.read_text())
    shutil.copy(resumed, next(folder.glob("*.py")))
    run = read_run(folder)
    assert run.cfg.load_from.endswith("epoch_2.pth")
    assert summary(run)["starts from"] == "random weights"


def damage(fault: str, folder: Path) -> None:
    if fault == "config":
        for file in (*folder.glob("*.py"), *folder.glob("*/vis_data/config.py")):
            file.unlink()
    elif fault == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif fault == "python":
        (folder / "ltm_swin_maskrcnn_shapes.py").write_text("model = dict(")
    elif fault == "model":
        (folder / "ltm_swin_maskrcnn_shapes.py").write_text("a = 1\n")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("config", "is no work dir of a run: it has no config (*.py)"),
        ("empty", "is no work dir of a run: it has no config (*.py)"),
        ("python", "cannot be read: '(' was never closed"),
        ("model", "is no config of a run: it has no model"),
    ],
)
def test_broken_work_dirs_end_in_one_line(
    copy: Copy, capsys: pytest.CaptureFixture, kind: str, expected: str
) -> None:
    folder = copy()
    damage(kind, folder)
    with pytest.raises(SystemExit) as ended, clean_errors():
        write_report([str(folder)])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not list(folder.glob("report.html"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(work_dirs=["no/such"]), "work dir no/such does not exist"),
        (dict(work_dirs=[__file__]), f"work dir {__file__} is a file"),
        (dict(out="page.pdf"), "--out page.pdf: the file's name must end in .html"),
        (dict(num_images=-1), "--num-images must be 0 or more"),
        (dict(images=["no.jpg"]), "--images no.jpg: there is no such file"),
    ],
)
def test_bad_arguments(work_dir: Path, arguments: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        write_report(**{"work_dirs": [str(work_dir)], "num_images": 0, **arguments})


def test_missing_parts_are_named_on_the_page(copy: Copy) -> None:
    folder = copy()
    for scalars in folder.glob("*/vis_data/scalars.json"):
        scalars.write_text(scalars.read_text()[:-30])  # killed while it wrote
    for checkpoint in folder.glob("*.pth"):
        checkpoint.unlink()
    (folder / "last_checkpoint").write_text("/gone/epoch_3.pth")
    (folder / "b.json").write_text('{"machine": 1, "settings": 2, "rows": [3]}')
    page = write_report([str(folder)]).read_text()
    assert "1 damaged lines of " in page
    assert re.search(r"The checkpoint .*epoch_3.pth is gone", page)
    assert "No pictures: there is no checkpoint to predict with." in page
    assert "The benchmark&#39;s file cannot be read" in page
    for scalars in folder.glob("*/*/*.json"):
        scalars.write_text("")
    for test in folder.glob("*/*.json"):
        test.write_text("")
    page = write_report([str(folder)], num_images=0).read_text()
    assert "No losses or metrics were logged yet." in page


def test_a_work_dir_that_was_moved(copy: Copy, work_dir: Path) -> None:
    folder = copy("moved")
    assert read_run(folder).checkpoint == folder / "epoch_3.pth"
    (folder / "epoch_3.pth").unlink()
    assert read_run(folder).checkpoint == work_dir / "epoch_3.pth"


def test_a_run_without_merging(copy: Copy) -> None:
    folder = copy()
    config = folder / "ltm_swin_maskrcnn_shapes.py"
    config.write_text(config.read_text().replace("keep='balanced'", "keep=None"))
    page = write_report([str(folder)], num_images=1).read_text()
    assert "No pictures: the model of" in page
    assert "merges no tokens" in page


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (dict(type="ltm_mm.LTMSwin"), "keep balanced"),
        (dict(type="ltm_mm.LTMSwin", keep=25), "keep 25"),
        (dict(type="ltm_mm.LTMSwin", keep=None), "none"),
        (dict(type="ltm_mm.LTMViT", keep=0.5), "keep 0.5"),
        (dict(type="ltm_mm.LTMEfficientViT"), "none"),
        (dict(type="SwinTransformer"), "none"),
    ],
)
def test_what_merges_in_a_few_words(work_dir: Path, backbone: dict, expected: str) -> None:
    run = read_run(work_dir)
    run.cfg.model.backbone = backbone
    assert summary(run)["merging"] == expected


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("coco/bbox_mAP", "box AP"),
        ("coco/segm_mAP_50", "mask AP50"),
        ("coco/bbox_mAP_s", "box AP small"),
        ("mIoU", "mIoU, %"),
        ("aAcc", "pixel accuracy, %"),
        ("coco/bbox_mAP_x", "coco/bbox_mAP_x"),
    ],
)
def test_names_of_metrics(name: str, label: str) -> None:
    assert metric_label(name) == label


def test_a_label_map_in_words() -> None:
    found = np.array([[0, 0, 0, 2], [0, 0, 0, 2]])
    assert _describe(found, ["sky", "sea", "sand"]) == "sky 75.0 %, sand 25.0 %"
    assert _describe(np.arange(8), None) == "class 0 12.5 %, class 1 12.5 %, class 2 12.5 %"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["tools/train.py", "a b.py", "--ltm", "fast"],
            "python tools/train.py 'a b.py' --ltm fast",
        ),
        (
            ["/x/tools/train.py", "a.py", "--amp", "--launcher", "pytorch"],
            "bash tools/dist_train.sh a.py 4 --amp",
        ),
        (
            ["/x/tools/test.py", "a.py", "w.pth", "--launcher", "pytorch"],
            "bash tools/dist_test.sh a.py w.pth 4",
        ),
        (["/usr/bin/pytest"], None),
    ],
)
def test_commands_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: str | None
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    note_command(tmp_path)
    assert read_commands(tmp_path) == []  # the first rank writes
    monkeypatch.setenv("RANK", "0")
    note_command(tmp_path, {"DATA_ROOT": "my data/"})
    said = [f"DATA_ROOT='my data/' {expected}"] if expected else []
    assert [c.line for c in read_commands(tmp_path)] == said

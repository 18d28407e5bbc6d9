"""Which checkpoint a run goes on from."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from ltm_mm.engine.resume import check_same_model, find_resume
from ltm_mm.errors import UserError


def save(path: Path, when: int, **changes: object) -> Path:
    """A checkpoint as mmengine writes it, with its modification time in seconds."""
    state = nn.Linear(2, 2).state_dict()
    torch.save(
        {
            "meta": {"iter": when},
            "message_hub": {},
            "optimizer": {},
            "state_dict": state,
            **changes,
        },
        path,
    )
    os.utime(path, (when, when))
    return path


def cut(path: Path) -> None:
    """As if the process had been killed while writing it."""
    when = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, (when, when))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A work dir with three checkpoints and a best one, the note on the newest."""
    for index in (1, 2, 3):
        save(tmp_path / f"iter_{index}.pth", index)
    save(tmp_path / "best_ap_iter_4.pth", 4)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_3.pth"))
    return tmp_path


def found(run: Path) -> str | None:
    path = find_resume("auto", str(run), trust=False)
    return path and Path(path).name


def test_the_noted_one(run: Path) -> None:
    assert found(run) == "iter_3.pth"
    (run / "last_checkpoint").write_text(str(run / "iter_2.pth"))
    assert found(run) == "iter_2.pth"  # iter_3 was not written whole, or is of an earlier run


def test_no_resume_asked_for(run: Path) -> None:
    assert find_resume(None, str(run), trust=False) is None


def test_a_damaged_one_is_passed_over(run: Path) -> None:
    cut(run / "iter_3.pth")
    assert found(run) == "iter_2.pth"
    (run / "iter_2.pth").write_bytes(b"")
    assert found(run) == "iter_1.pth"


def test_the_noted_one_is_gone(run: Path) -> None:
    (run / "iter_3.pth").unlink()
    assert found(run) == "iter_2.pth"
    (run / "last_checkpoint").unlink()
    assert found(run) == "iter_2.pth"


def test_a_folder_that_was_moved(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = run.rename(tmp_path_factory.mktemp("elsewhere") / "run")
    assert found(moved) == "iter_3.pth"


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    assert found(tmp_path / "not_even_a_folder") is None


def test_all_damaged(run: Path) -> None:
    for file in run.glob("iter_*.pth"):
        cut(file)
    with pytest.raises(UserError, match=r"no checkpoint in .* \(iter_3.pth, iter_2.pth, iter_1"):
        found(run)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"state_dict": nn.Linear(2, 2).state_dict()}, "use --checkpoint"),
        (
            {"meta": {}, "message_hub": {}, "optimizer": {}, "state_dict": {}, "hook": nn.Linear},
            "--trust-checkpoint",
        ),
    ],
)
def test_a_file_that_cannot_be_resumed(tmp_path: Path, content: dict, line: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=line):
        find_resume(str(tmp_path / "file.pth"), str(tmp_path), trust=False)


def test_a_file_to_be_trusted_is_not_passed_over(run: Path) -> None:
    save(run / "iter_3.pth", 3, hook=nn.Linear)
    with pytest.raises(UserError, match="--trust-checkpoint"):
        found(run)
    assert find_resume("auto", str(run), trust=True) == str(run / "iter_3.pth")


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Conv2d(2, 2, 1)]
)
def test_another_model(run: Path, model: nn.Module) -> None:
    file = str(run / "iter_3.pth")
    check_same_model(nn.Linear(2, 2), file, trust=False, cfg=Config())
    with pytest.raises(UserError, match="saved by another model"):
        check_same_model(model, file, trust=False, cfg=Config())


PLAN = "model = dict(backbone=dict(type='ltm_mm.LTMSwin', norm_cfg=dict(type='LN'), keep={!r}))"


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (PLAN.format("fast"), PLAN.format("fast"), None),
        (PLAN.format("fast"), PLAN.format((9, None)), ("keep='fast'", "keep=(9, None)")),
        ("model = dict(backbone=dict(type='X'))", PLAN.format(9), ("no merging", "keep=9")),
        (None, PLAN.format(9), None),  # of a runner that does not note it
        ("no Python", PLAN.format(9), None),
    ],
)
def test_another_plan_is_said(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    now: str,
    changes: tuple[str, str] | None,
) -> None:
    """Parameters are the same, so that it can go on."""
    said: list[str] = []
    monkeypatch.setattr("ltm_mm.engine.resume.log_warning", said.append)
    file = save(run / "iter_4.pth", 4, meta={"iter": 4, "cfg": before})
    cfg = Config.fromstring(now, ".py")
    check_same_model(nn.Linear(2, 2), str(file), trust=False, cfg=cfg)
    assert len(said) == bool(changes)
    if changes:
        assert f"was trained with {changes[0]}" in said[0]
        assert f"it goes on with {changes[1]}" in said[0]

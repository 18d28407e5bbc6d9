"""The tools as programs: what they print, how they end, ranks, a killed run, real COCO images."""

import json
import os
import pickle
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from ltm_mm.engine.ib_hook import KEY
from ltm_mm.errors import UserError
from tests.conftest import ROOT, tool_runner
from tests.tools.conftest import Tool, command, environment

SHAPES_CONFIG = ROOT / "configs" / "ltm_swin_maskrcnn_shapes.py"

# The loss of a batch over several ranks is the mean of the ranks' losses only where each
# image has the same say: so all anchors and a fixed number of proposals count, none are
# drawn at random, and the mask loss, a mean over however many objects a rank has, has
# weight 0.
COMPARABLE = """
_base_ = {config!r}
custom_imports = dict(imports=['probe'])
custom_hooks = [
    dict(type='LossProbe', folder={folder!r}),
    dict(type='ltm_mm.InformationBottleneck', bound='variational', warmup=0.0)]
everything = dict(type='RandomSampler', num=10**9, pos_fraction=0.5, add_gt_as_proposals=False)
model = dict(
    train_cfg=dict(
        rpn=dict(assigner=dict(neg_iou_thr=0.5, pos_iou_thr=0.5), sampler=everything),
        rpn_proposal=dict(max_per_img=20),
        rcnn=dict(sampler=everything)),
    roi_head=dict(mask_head=dict(loss_mask=dict(loss_weight=0.))))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
train_dataloader = dict(
    batch_size={batch}, num_workers=0, persistent_workers=False,
    sampler=dict(shuffle=False),
    dataset=dict(data_root={data!r}, indices=8, pipeline=train_pipeline))
train_cfg = dict(max_epochs=1)
val_cfg = val_dataloader = val_evaluator = None
"""


def options(shapes: Path, **changes: object) -> list[str]:
    """Command-line options that point the built-in config at ``shapes`` and make it small."""
    given: dict[str, object] = {
        "train_dataloader.batch_size": 2,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.logger.interval": 1,
    }
    for part in ("train", "val", "test"):
        given[f"{part}_dataloader.dataset.data_root"] = shapes
        given[f"{part}_dataloader.num_workers"] = 0
        given[f"{part}_dataloader.persistent_workers"] = False
        if part != "train":
            given[f"{part}_evaluator.ann_file"] = shapes / "annotations" / "instances_val.json"
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["--cfg-options", *(f"{key}={value}" for key, value in given.items())]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("train", SHAPES_CONFIG, "--ltm", "quick"), "error: --ltm quick: give none, light"),
        (("test", SHAPES_CONFIG, "gone.pth"), "error: checkpoint gone.pth does not exist"),
    ],
)
def test_one_line_and_no_traceback(
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple,
    line: str,
) -> None:
    name, *words = arguments
    run = tool_runner(name, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        run(*words, *options(shapes))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert next(ln for ln in said.splitlines() if "error" in ln).startswith(line)
    with pytest.raises(UserError, match=line.removeprefix("error: ")):
        run(*words, "--debug", *options(shapes))


@pytest.mark.slow  # as test_install.py's test_command_says_what_is_missing
def test_a_program_ends_in_one_line_and_with_its_status(tool: Tool) -> None:
    done = tool("train.py", "gone.py", ok=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: config gone.py does not exist")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train.py", "work-dir resume amp cfg-options launcher ltm ib checkpoint trust-checkpoint"),
        ("test.py", "work-dir out show-dir tta cfg-options launcher ltm trust-checkpoint"),
    ],
)
def test_flags(tool: Tool, name: str, flags: str) -> None:
    text = tool(name, "--help").stdout
    assert all(f"--{flag}" in text for flag in flags.split())


@pytest.mark.parametrize("name", ["dist_train.sh", "dist_test.sh"])
def test_usage_of_scripts(tool: Tool, name: str) -> None:
    done = tool(name, "config.py", ok=False)
    assert done.returncode == 2
    assert f"{name} CONFIG" in done.stderr


def steps(folder: Path) -> list[list[dict]]:
    """What the probe of each rank wrote, step by step."""
    files = sorted(folder.glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one_process(tool: Tool, shapes: Path, tmp_path: Path) -> None:
    seen = {}
    for ranks, batch in ((1, 4), (2, 2)):
        folder = tmp_path / f"{ranks}"
        folder.mkdir()
        config = tmp_path / f"comparable_{ranks}.py"
        config.write_text(
            COMPARABLE.format(
                config=str(SHAPES_CONFIG), folder=str(folder), batch=batch, data=str(shapes)
            )
        )
        start = ("train.py", config) if ranks == 1 else ("dist_train.sh", config, ranks)
        tool(*start, "--work-dir", folder / "work")
        seen[ranks] = steps(folder)
    (alone,), (first, second) = seen[1], seen[2]
    assert len(alone) == len(first) == len(second) == 2
    # The same global batch, half of it on each rank.
    assert {*first[0]["images"], *second[0]["images"]} == {*alone[0]["images"]}
    assert not {*first[0]["images"]} & {*second[0]["images"]}
    for name in ("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_ib"):
        mean = (first[0][name] + second[0][name]) / 2
        assert mean == pytest.approx(alone[0][name], abs=1e-4), name
    # The gradients are averaged over the ranks, so the next step is the same as well.
    assert first[0]["grad_norm"] == pytest.approx(second[0]["grad_norm"], rel=1e-6)
    assert first[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-3)
    mean = (first[1]["loss"] + second[1]["loss"]) / 2
    assert mean == pytest.approx(alone[1]["loss"], rel=1e-3)
    # Each rank's estimates of the bottleneck are those of the whole batch.
    states = [
        torch.load(tmp_path / f"{ranks}/work/epoch_1.pth", weights_only=False)[KEY]
        for ranks in (1, 2)
    ]
    assert len(states[0]) == 4
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)


def wait_for(condition: str, folder: Path, process: subprocess.Popen, seconds: float = 300) -> None:
    """Until a file matches, as long as the process lives."""
    end = time.monotonic() + seconds
    while not list(folder.glob(condition)):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end, f"no {condition} after {seconds} s"
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_run_goes_on(tool: Tool, shapes: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    arguments = ("train.py", SHAPES_CONFIG, "--work-dir", work, "--resume")
    short = options(
        shapes,
        train_dataloader__batch_size=4,  # four steps an epoch
        train_cfg__max_epochs=4,
        train_cfg__val_interval=9,
    )
    process = subprocess.Popen(
        command(*arguments, *short),
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for("epoch_2.pth", work, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    # As if it had died while writing the next one.
    last = Path((work / "last_checkpoint").read_text())
    half = work / "epoch_9.pth"
    half.write_bytes(last.read_bytes()[:10_000])
    (work / "last_checkpoint").write_text(str(half))

    done = tool(*arguments, *short)
    said = done.stdout + done.stderr
    assert re.search(r"not resuming from it: .*epoch_9.pth.* truncated", said)
    ((epoch, step),) = re.findall(r"resumed epoch: (\d+), iter: (\d+)", said)
    assert int(step) == 4 * int(epoch)
    assert 1 <= int(epoch) < 4
    steps_run = re.findall(r"Epoch\(train\) +\[(\d)\]\[(\d)/4\]", said)
    expected = [(str(e), str(i)) for e in range(int(epoch) + 1, 5) for i in range(1, 5)]
    assert steps_run == expected
    assert (work / "epoch_4.pth").is_file()


@pytest.mark.slow
def test_error_and_evaluation_in_two_ranks(tool: Tool, shapes: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    wrong = options(shapes, model__backbone__keep=99)
    done = tool("dist_train.sh", SHAPES_CONFIG, 2, "--work-dir", work, *wrong, ok=False)
    assert done.returncode == 1
    assert "error: LTMSwin: keep of stage 0: 99 is neither" in done.stderr
    assert "Traceback" not in done.stderr

    tool("train.py", SHAPES_CONFIG, "--work-dir", work, *options(shapes, train_cfg__max_epochs=1))
    flags = ("--work-dir", work, "--out", tmp_path / "out.pkl")
    both = tool("dist_test.sh", SHAPES_CONFIG, work / "epoch_1.pth", 2, *flags, *options(shapes))
    alone = tool("test.py", SHAPES_CONFIG, work / "epoch_1.pth", *flags[:2], *options(shapes))
    metrics = [re.search(r"  metrics +(.+)", run.stdout) for run in (both, alone)]
    assert metrics[0] is not None
    assert metrics[1] is not None
    assert metrics[0][1] == metrics[1][1]
    assert len(pickle.loads((tmp_path / "out.pkl").read_bytes())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [None, "FSDPStrategy"])
def test_flexible_runner_in_two_ranks(
    tool: Tool, shapes: Path, tmp_path: Path, strategy: str | None
) -> None:
    """Train, resume and test; what is saved is whole, and one process reads it."""
    work = tmp_path / "work"
    changes: dict[str, object] = {"runner_type": "FlexibleRunner", "train_cfg__max_epochs": 1}
    changes |= {"strategy__type": strategy} if strategy else {}
    start = ("dist_train.sh", SHAPES_CONFIG, 2, "--work-dir", work)
    tool(*start, *options(shapes, **changes, train_cfg__val_interval=1))
    longer = changes | {"train_cfg__max_epochs": 2}
    done = tool(*start, "--resume", *options(shapes, **longer))
    assert "resumed epoch: 1, iter: 4" in done.stdout + done.stderr
    flags = ("--work-dir", work)
    both = tool(
        "dist_test.sh", SHAPES_CONFIG, work / "epoch_2.pth", 2, *flags, *options(shapes, **changes)
    )
    alone = tool("test.py", SHAPES_CONFIG, work / "epoch_2.pth", *flags, *options(shapes))
    metrics = [re.search(r"  metrics +(.+)", run.stdout) for run in (both, alone)]
    assert metrics[0] is not None
    assert metrics[1] is not None
    assert metrics[0][1] == metrics[1][1]

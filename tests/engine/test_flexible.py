"""mmengine's FlexibleRunner through the tools: a life on one device, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_mm.engine import evaluate, train
from tests.engine.conftest import SHAPES_CONFIG, line_of

Options = Callable[..., dict[str, object]]
FAST = {
    "train_dataloader.dataset.pipeline.2.scale": (96, 96),
    "model.train_cfg.rpn_proposal.max_per_img": 10,
    "model.train_cfg.rcnn.sampler.num": 8,
    "model.test_cfg.rpn.max_per_img": 10,
    "runner_type": "FlexibleRunner",
}


@pytest.mark.slow  # test_start_from_weights trains with this runner
def test_train_resume_evaluate(
    tmp_path: Path, options: Options, capsys: pytest.CaptureFixture
) -> None:
    work, changes = str(tmp_path / "work"), {**options(), **FAST}
    assert train(SHAPES_CONFIG, work, cfg_options=changes).iter == 2
    assert f"{work}/epoch_1.pth" in capsys.readouterr().out.rpartition("Done.")[2]

    changes["train_cfg.max_epochs"] = 2
    runner = train(SHAPES_CONFIG, work, resume="auto", cfg_options=changes)
    assert runner.iter == 4

    saved = torch.load(f"{work}/epoch_2.pth", weights_only=False)["state_dict"]
    with pytest.MonkeyPatch.context() as patch:  # the weights that are measured are those saved
        seen = {}
        loop = "mmengine.runner.loops.TestLoop.run_iter"
        patch.setattr(loop, lambda self, *_: seen.update(self.runner.model.state_dict()))
        patch.setattr("mmengine.evaluator.Evaluator.evaluate", lambda *_: {})
        evaluate(SHAPES_CONFIG, f"{work}/epoch_2.pth", work, cfg_options=changes)
    assert seen.keys() == saved.keys()
    for name, value in saved.items():
        torch.testing.assert_close(seen[name], value, rtol=0, atol=0)


def test_start_from_weights(tmp_path: Path, options: Options) -> None:
    """They are not drawn anew when the strategy prepares the model."""
    from mmdet.registry import MODELS

    from ltm_mm.engine import load_config

    changes = {**options(), **FAST, "optim_wrapper.optimizer.lr": 0.0, "param_scheduler": None}
    changes |= {"val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    model = MODELS.build(load_config(SHAPES_CONFIG, changes).model)
    file = str(tmp_path / "weights.pth")
    torch.save({"state_dict": model.state_dict()}, file)
    runner = train(SHAPES_CONFIG, str(tmp_path / "work"), checkpoint=file, cfg_options=changes)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(runner.model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("launcher", "named", "expected"),
    [
        (
            "none",
            {"strategy": {"type": "FSDPStrategy"}},
            "FSDPStrategy is for several ranks: start",
        ),
        (
            "slurm",
            {},
            "--launcher slurm needs a Slurm job: start it with srun (SLURM_PROCID is not",
        ),
        ("mpi", {}, "--launcher mpi needs Open MPI: start it with mpirun (OMPI_COMM_WORLD_LOCAL_"),
    ],
)
def test_refused(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: Options,
    launcher: str,
    named: dict,
    expected: str,
) -> None:
    for variable in ("SLURM_PROCID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    changes = {**options(), **FAST, **named}
    call = lambda: train(SHAPES_CONFIG, str(tmp_path), launcher=launcher, cfg_options=changes)  # noqa: E731
    assert expected in line_of(capsys, call)

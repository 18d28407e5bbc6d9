"""Exported programs and ONNX files against the model, at sizes they were not traced with."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltm_mm.analysis.benchmark.baselines import build_models
from ltm_mm.errors import UserError
from ltm_mm.export import compare, export_program, open_file, save_onnx, save_program, whole_model
from ltm_mm.export.files import ExportedFile
from ltm_mm.export.pooling import DynamicAdaptivePooling, antialiased
from ltm_mm.export.run import export
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from tests.conftest import ROOT, tool_runner
from tests.models.contract import randomise

TRACED = (75, 117)
# Whole windows; none of them whole; one window; upright.
OTHERS = [(112, 224), (57, 131), (33, 34), (150, 61)]
SMALL = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
SMALL_VIT = dict(arch="tiny", embed_dims=24, num_heads=2)


def one_stage(**kwargs: object) -> LTMSwin:
    options = dict(embed_dims=8, depths=(2,), num_heads=(1,), strides=(4,), out_indices=(0,))
    return randomise(LTMSwin(**options, **kwargs)).eval()


def check(model: nn.Module, run: object, limit: float = 1e-4) -> None:
    differences = list(compare(model, run, [TRACED, *OTHERS]))
    assert len(differences) == 10
    for difference in differences:
        assert difference.largest < limit, difference


def onnx_of(model: nn.Module, path: Path) -> object:
    outputs = [f"map{k}" for k in range(len(model(torch.zeros(1, 3, *TRACED))))]
    save_onnx(export_program(model, TRACED), path, outputs, {})
    return open_file(path).run


class _Chaos(nn.Module):
    """What rounding decides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1e7).sin()


def test_a_file_is_held_to_what_the_model_is_to_itself():
    """Where two tokens are equally alike to a third, another rounding merges another pair."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return _Chaos()(x + 1e-7 * torch.randn_like(x))

    (difference,) = compare(_Chaos(), rounded, [(40, 50)], (1,))
    assert difference.largest > 0.5
    assert difference.of_model.largest > 0.5
    assert difference.equal
    assert "the model from itself" in str(difference)

    def tie(x: torch.Tensor) -> torch.Tensor:
        """A file with a tie that the model lacks: rounding puts it on either side."""
        return x.relu() + (x.sum() * 1e7).sin()

    (difference,) = compare(nn.ReLU(), tie, [(40, 50)], (1,))
    assert difference.largest > 1e-2
    assert difference.of_model.largest < 1e-5
    assert difference.of_file.largest > 1e-2
    assert difference.equal
    assert "the file from itself" in str(difference)
    (difference,) = compare(nn.ReLU(), lambda x: x.relu() * 1.001, [(40, 50)], (1,))
    assert not difference.equal
    assert difference.of_model.largest < 1e-5
    assert difference.of_file.largest < 1e-5
    (difference,) = compare(nn.ReLU(), lambda x: x.relu() * torch.nan, [(40, 50)], (1,))
    assert not difference.equal
    (difference,) = compare(nn.ReLU(), torch.relu, [(40, 50)], (1,))
    assert difference.equal
    assert difference.of_model is None


@pytest.mark.slow
def test_onnx_of_a_merged_stage_is_the_model_at_all_sizes(tmp_path):
    """Windows that are shifted or not, padded or not."""
    pytest.importorskip("onnxscript")
    model = one_stage(keep=25)
    check(model, onnx_of(model, tmp_path / "stage.onnx"))


@pytest.mark.slow  # test_device_path.py exports one of a fixed size
@pytest.mark.parametrize("keep", [(100, 100), (196, 120)])
def test_program_of_a_vit_is_the_model_at_all_sizes(keep):
    """A merge in one round, or in two (of 196 to 100), among numbers of tokens of any size."""
    model = randomise(LTMViT(**SMALL_VIT, num_layers=2, keep=(keep,))).eval()
    check(model, export_program(model, TRACED).module())


def test_comparison_sees_what_tracing_fixed():
    """A network that looks at its first image's size only."""
    model = one_stage(keep=None)
    seen = []

    def fixed(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(x.shape)
        of_model = model(x)
        if x.shape[2:] == TRACED:
            return of_model
        return tuple(m + 1e-3 * m.abs().max() for m in of_model)

    largest = {d.size: d.largest for d in compare(model, fixed, [TRACED, (64, 64)])}
    assert largest[TRACED] == 0
    assert largest[64, 64] > 9e-4
    assert {shape[0] for shape in seen} == {1, 3}
    with pytest.raises(ValueError, match="where the model gives"):
        list(compare(model, lambda x: model(x[..., 4:]), [TRACED]))


@pytest.mark.parametrize("cells", [(1, 1), (2, 2), (3, 5), (6, 6)])
@pytest.mark.parametrize("size", [(6, 6), (7, 13), (4, 3), (16, 31)])
def test_pooling_is_pytorchs(cells, size):
    x = torch.randn(2, 3, *size)
    assert_close(DynamicAdaptivePooling(cells)(x), nn.AdaptiveAvgPool2d(cells)(x))


@pytest.mark.parametrize("size", [(7, 9), (14, 14), (20, 3), (31, 40)])
def test_antialiased_resizing_is_pytorchs(size):
    x = torch.randn(2, 3, 14, 14)
    own = nn.functional.interpolate(x, size, mode="bicubic", antialias=True)
    assert_close(antialiased(x, size), own, rtol=1e-5, atol=1e-5)


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match="at least 33 x 33 pixels"):
        export_program(one_stage(), (32, 64))


def test_a_layer_is_no_whole_model():
    with pytest.raises(ValueError, match="Linear is of a kind that cannot be exported whole"):
        whole_model(nn.Linear(1, 1))


@pytest.fixture
def tool(monkeypatch):
    """``tools/export.py`` on a command line."""
    return tool_runner("export", monkeypatch)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ltm-swin-t", "--size", 20, 64], "--size must be 33 or more, got 20 64"),
        (["ltm-swin-t", "--ltm", "quick"], "--ltm quick: give none"),
        (["ltm-swin-t", "--whole-model"], "needs a detector's config"),
        (["ltm-efficientvit-b0", "gone.pth"], "gone.pth"),
        (["ltm-swin-t", "--int8"], "--int8 quantises with NNCF for OpenVINO"),
        (["ltm-swin-t", "--out", "a.pt2"], "a file of --format onnx must end in .onnx"),
        (
            [ROOT / "configs" / "ltm_mobilevit_ssdlite_shapes.py", "--whole-model", "--size", 9, 9],
            "--size must be 33 or more, got 9 9",
        ),
        (
            ["mmdet::solo/solo_r50_fpn_1x_coco.py", "--whole-model"],
            "SOLO is of a kind that cannot be exported whole; `python tools/export.py --list`",
        ),
    ],
)
def test_bad_input_ends_in_one_line(tool, capsys, args, says):
    with pytest.raises(SystemExit) as stop:
        tool(*args)
    assert stop.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert says in line


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        ("onnx", {}, r"writing ONNX needs onnx.*pip install 'ltm_mm\[export\]'"),
        ("onnxscript", {}, r"writing ONNX needs onnx.*pip install 'ltm_mm\[export\]'"),
        ("onnxruntime", dict(check=True), r"--check needs onnx.*pip install 'ltm_mm\[export\]'"),
        ("openvino", dict(format="openvino"), r"openvino: pip install 'ltm_mm\[openvino\]'"),
        ("nncf", dict(format="openvino", int8=3), r"nncf: pip install 'ltm_mm\[openvino\]'"),
    ],
)
def test_a_missing_package_is_one_line_that_installs_it(
    monkeypatch, tmp_path, module, options, says
):
    """Before minutes of tracing."""
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):  # those here or not
        monkeypatch.setitem(sys.modules, name, None if name == module else ModuleType(name))
    monkeypatch.setattr("ltm_mm.export.run.export_program", None)
    suffix = ".xml" if options.get("format") == "openvino" else ".onnx"
    with pytest.raises(ImportError, match=says):
        export("ltm-efficientvit-b0", out=str(tmp_path / f"a{suffix}"), **options)


@pytest.mark.parametrize(("module", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_a_missing_runtime_is_one_line_that_installs_it(monkeypatch, tmp_path, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(ImportError, match=rf"running .*a{suffix} needs {module}: pip install"):
        open_file(path)


BACKBONES = {
    "swin": lambda keep: LTMSwin(**SMALL, keep=keep),
    "efficientvit": lambda keep: LTMEfficientViT("b0", keep=keep),
    "vit": lambda keep: LTMViT(**SMALL_VIT, num_layers=4, keep=keep),
    "vit-pyramid": lambda keep: LTMViT(
        **SMALL_VIT, num_layers=4, keep=keep, patch_size=8, simple_pyramid=True, final_norm=True
    ),
    "mobilevit": lambda keep: LTMMobileViT("xxs", keep=keep),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "keep"),
    [
        *((f, k) for f in ("swin", "efficientvit") for k in (None, "light", "balanced", "fast")),
        *((f, k) for f in ("vit", "vit-pyramid", "mobilevit") for k in (None, "fast")),
    ],
)
@pytest.mark.parametrize("format", ["onnx", "xml", "pt2"])
def test_backbones_in_all_formats(family, keep, format, tmp_path):
    pytest.importorskip("onnxscript")
    model = randomise(BACKBONES[family](keep)).eval()
    program = export_program(model, TRACED)
    path, outputs = tmp_path / f"a.{format}", [f"stage{k}" for k in range(4)]
    if format == "pt2":
        save_program(program, path, {})
    elif format == "onnx":
        save_onnx(program, path, outputs, {})
    else:
        pytest.importorskip("openvino")
        from ltm_mm.export.openvino import save_openvino

        save_openvino(program, path, outputs, {})
    check(model, open_file(path).run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltm_swin_upernet_shapes", "ltm_efficientvit_upernet_shapes"])
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_upernet_whole(name, format, tmp_path, capsys):
    """The tool on a trained-like checkpoint: loads it, writes, and compares at four sizes."""
    pytest.importorskip("onnxscript")
    config = str(ROOT / "configs" / f"{name}.py")
    (model,) = build_models(config, whole=True).values()
    torch.save(dict(state_dict=randomise(model).state_dict()), tmp_path / "trained.pth")
    differences = export(
        config, str(tmp_path / "trained.pth"), format, True, TRACED,
        out=str(tmp_path / "whole") + (".onnx" if format == "onnx" else ".pt2"), check=True,
    )  # fmt: skip
    assert len({d.size for d in differences}) == 4
    assert len({d.batch for d in differences}) == 2
    assert max(d.largest for d in differences) < 1e-4
    assert "weights trained.pth" in capsys.readouterr().out


def test_a_file_that_differs_is_an_error(tmp_path, monkeypatch):
    wrong = ExportedFile(lambda x: (x * float("nan"),), {"smallest": 33}, "none")
    monkeypatch.setattr("ltm_mm.export.run.open_file", lambda path: wrong)
    monkeypatch.setattr("ltm_mm.export.run.export_program", lambda *_, **__: None)
    monkeypatch.setattr("ltm_mm.export.run.save_onnx", lambda program, path, *_: path.touch())
    monkeypatch.setattr("ltm_mm.export.run._prepared", lambda *_: (nn.ReLU(), ["stage0"]))
    with pytest.raises(UserError, match="differs from the model by more than rounding"):
        export("ltm-efficientvit-b0", out=str(tmp_path / "a.onnx"), check=True, size=(64, 64))

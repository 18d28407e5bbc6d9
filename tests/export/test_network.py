"""Models of other libraries, merged, by PyTorch's exporters and by ``ltm_mm.export``."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models.swin_transformer import SwinTransformer

import ltm_mm
from ltm_mm.errors import UserError
from ltm_mm.export import open_file
from ltm_mm.export.check import Difference
from tests.models.contract import settled

SIZE = (63, 84)  # windows that are padded and not, shifted and not


def torchvision_swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [2], [1], window_size=[7, 7], num_classes=5)


def timm_swin() -> nn.Module:
    own = dict(embed_dim=8, depths=(2,), num_heads=(1,), num_classes=5, img_size=SIZE)
    return timm.create_model("swin_tiny_patch4_window7_224", always_partition=True, **own)


def timm_vit() -> nn.Module:
    own = dict(embed_dim=24, num_heads=2, depth=2, num_classes=5, img_size=(64, 96))
    return timm.create_model("vit_tiny_patch16_224", **own)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "torchvision": (torchvision_swin, SIZE),
    "timm": (timm_swin, SIZE),
    "vit": (timm_vit, (64, 96)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, size = MODELS[name]
    return ltm_mm.apply(settled(make()).eval(), keep=0.5), torch.randn(2, 3, *size)


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("torchvision", False),
        ("vit", False),
        pytest.param("timm", False, marks=pytest.mark.slow),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in MODELS),
    ],
)
def test_pytorchs_own_exporters_write_files_of_any_batch(name, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = build(name)
    file = str(tmp_path / "model.onnx")
    options: dict = dict(opset_version=17, dynamic_axes={"x": {0: "batch"}})
    if dynamo:
        options = dict(dynamic_shapes=({0: torch.export.Dim("batch")},), optimize=False)
    torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False, input_names=["x"], **options)
    session = onnxruntime.InferenceSession(file)
    for batch in (2, 3):
        x = torch.randn(batch, *x.shape[1:])
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the documentation's example exports such a model, test_whole.py to ONNX
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_a_file_is_the_model(suffix, tmp_path):
    if suffix != ".pt2":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime" if suffix == ".onnx" else "openvino")
    model, x = build("torchvision")
    path = tmp_path / f"model{suffix}"
    differences = ltm_mm.export(model, x[:1], path)
    assert [(d.batch, d.size) for d in differences] == [(1, SIZE), (3, SIZE)]
    assert all(d.largest < 1e-4 for d in differences)
    file = open_file(path)
    (out,) = file.run(x)
    with torch.no_grad():
        assert_close(out, model(x), rtol=1e-4, atol=1e-5)
    assert file.metadata["outputs"] == ["output"]


class _Outputs(nn.Module):
    """A dictionary of a tensor, of several, and of nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict:
        maps = self.model(x)
        return {"logits": maps.sum((1, 2)), "maps": (maps, 2 * maps), "nothing": None}


@pytest.mark.slow
def test_sizes_and_outputs_of_a_backbone(tmp_path):
    features = _Outputs(build("torchvision")[0].features)
    path = tmp_path / "model.pt2"
    found = ltm_mm.export(features, torch.zeros(1, 3, 72, 90), path, dynamic_size=True)
    assert len({d.size for d in found}) == 4
    file = open_file(path)
    assert file.metadata["outputs"] == ["logits", "maps0", "maps1"]
    x = torch.randn(1, 3, 130, 51)
    with torch.no_grad():
        expected = features(x)
        maps = list(expected["maps"])
        assert_close(list(file.run(x)), [expected["logits"], *maps], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="takes images of 37 x 37 pixels and more"):
        file.run(torch.randn(1, 3, 36, 90))


def test_a_file_that_differs_is_refused(monkeypatch, tmp_path):
    worse = Difference(1, SIZE, 0.5, of_model=Difference(1, SIZE, 0.1))
    monkeypatch.setattr("ltm_mm.export.network.compare", lambda *_, **__: [worse])
    with pytest.raises(UserError, match="differs from the model by more than rounding at batch 1"):
        ltm_mm.export(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 40, 40), tmp_path / "a.pt2")


class _Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 40, "size must be 40"
        return x


class _Detector(nn.Module):
    def forward(self, x: Tensor) -> list[dict]:
        return [{"labels": "cat"}]


@pytest.mark.parametrize(
    ("model", "example", "name", "options", "message"),
    [
        (
            nn.ReLU(),
            torch.zeros(1, 3, 40, 40),
            "a.tflite",
            {},
            "path must end in .onnx, .xml, .pt2",
        ),
        (nn.ReLU(), torch.zeros(3, 40, 40), "a.pt2", {}, "got a Tensor of shape"),
        (nn.ReLU(), "photo.jpg", "a.pt2", {}, "example must be images .*, got a str"),
        ("swin", torch.zeros(1, 3, 40, 40), "a.pt2", {}, "model must be a built model"),
        (_Detector(), torch.zeros(1, 3, 0, 40), "a.pt2", {}, r"got a Tensor of shape \(1, 3, 0,"),
        (
            nn.Conv2d(3, 4, 3, device="meta"),
            torch.zeros(1, 3, 40, 40),
            "a.pt2",
            {},
            "no weights: it is on the meta device",
        ),
        (_Detector(), torch.zeros(1, 3, 40, 40), "a.pt2", {}, "the model returns a str too"),
        (
            _Sized(),
            torch.zeros(1, 3, 40, 50),
            "a.pt2",
            dict(dynamic_size=True),
            "_Sized cannot be traced .*try dynamic_size=False",
        ),
    ],
)
def test_mistakes_get_one_clear_line(model, example, name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        ltm_mm.export(model, example, tmp_path / name, **options)
    assert "\n" not in str(error.value)
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(UserError, match="is a folder: name a file"):
        ltm_mm.export(model, example, tmp_path / "folder.pt2")


@pytest.mark.slow  # that it can be imported without, test_install.py tests
def test_openmmlab_is_not_needed(tmp_path):
    code = f"""
import sys
for name in ("mmcv", "mmengine", "mmdet", "mmseg"): sys.modules[name] = None
import ltm_mm, torch
print(ltm_mm.export(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 9, 9), {str(tmp_path / "a.pt2")!r}))
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Difference(batch=1" in done.stdout

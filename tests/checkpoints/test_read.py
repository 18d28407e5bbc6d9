"""Files and URLs: what is read, what is refused, and in which words."""

import functools
import http.server
import os
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from safetensors.torch import save_file
from torch.testing import assert_close

from ltm_mm.checkpoints import read_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Trainer:
    """Stands for a class of somebody else's training code."""

    lr = 0.1


class Attack:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


class Reach:
    """Reaches for an attribute through the builtin that mmengine's files refer to."""

    def __reduce__(self) -> tuple:
        return getattr, (HistoryBuffer, "__init__")


def mmengine_checkpoint() -> dict:
    """What mmengine's runner saves beside the weights."""
    return {
        "meta": {"epoch": 1, "dataset_meta": {"classes": ("a",), "palette": [(1, 2, 3)]}},
        "state_dict": WEIGHTS,
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])},
            "runtime_info": {"best_score": np.float64(0.5), "n": np.int64(3), "ok": np.bool_(True)},
        },
        "args": Namespace(lr=np.float32(0.1)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("checkpoint", [WEIGHTS, {"model": WEIGHTS}, mmengine_checkpoint()])
def test_reads_without_trust(tmp_path: Path, checkpoint: dict, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert_close(read_state_dict(path), WEIGHTS)
    assert_close(read_state_dict(str(path), trust=True), WEIGHTS)


def test_reads_what_numpy_1_saved(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(mmengine_checkpoint(), path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(old)
    assert b"numpy.core.multiarray" in old
    assert_close(read_state_dict(path), WEIGHTS)


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert_close(read_state_dict(tmp_path / "weights.safetensors"), WEIGHTS)


def test_other_classes_need_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "trainer.pth"
    torch.save({"state_dict": WEIGHTS, "trainer": Trainer()}, path)
    with pytest.raises(ValueError, match=r"trainer\.pth: .*Trainer.*--trust-checkpoint"):
        read_state_dict(path)
    assert_close(read_state_dict(path, trust=True), WEIGHTS)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("attack", [Attack, lambda _: Reach()])
def test_code_in_a_file_does_not_run(tmp_path: Path, attack: type, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "attack.pth"
    checkpoint = {"state_dict": WEIGHTS, "x": attack(marker)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        read_state_dict(path)
    assert not marker.exists()


def write_bad(folder: Path, name: str) -> Path:
    """A file that cannot be read, of the given kind."""
    path = folder / name
    torch.save(WEIGHTS, folder / "good.pth")
    good = (folder / "good.pth").read_bytes()
    contents = {
        "empty.pth": b"",
        "truncated.pth": good[: len(good) // 2],
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "text.pth": b"hello\n",
        "cut.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{",
    }
    path.write_bytes(contents[name])
    return path


@pytest.mark.parametrize(
    "name",
    ["empty.pth", "truncated.pth", "page.pth", "text.pth", "cut.safetensors"],
)
@pytest.mark.parametrize("trust", [False, True])
def test_broken_files(tmp_path: Path, name: str, trust: bool) -> None:
    path = write_bad(tmp_path, name)
    with pytest.raises(ValueError, match=r"truncated one .*bytes\): download or copy") as caught:
        read_state_dict(path, trust)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("checkpoint", "line"),
    [
        ({}, "no weights"),
        ({"epoch": 3}, r"no weights in the checkpoint: it holds \['epoch'\]"),
        ([1, 2], "no weights in the checkpoint: it holds <class 'list'>"),
        ({"state_dict": {"a": 1}}, "no weights"),
    ],
)
def test_checkpoints_without_weights(tmp_path: Path, checkpoint: object, line: str) -> None:
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=line):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("path", "error", "line"),
    [
        ("no/such.pth", FileNotFoundError, r"no/such\.pth does not exist: give a local file"),
        (".", ValueError, "is a folder: name the file in it"),
        ("s3://bucket/x.pth", ValueError, "s3://bucket/x.pth: give a local path or an http"),
        ("mmcls://nothing", ValueError, "knows no model of that name"),
        ("http://127.0.0.1:9/x.pth", ConnectionError, "could not download.*give a local file"),
    ],
)
def test_bad_addresses(
    path: str, error: type, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(error, match=line) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local web server: its address and its folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def test_download(site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = site
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(WEIGHTS, folder / "good.pth")
    assert_close(read_state_dict(f"{address}/good.pth"), WEIGHTS)
    (folder / "good.pth").unlink()
    assert_close(read_state_dict(f"{address}/good.pth"), WEIGHTS)  # from the cache

    with pytest.raises(ConnectionError, match=r"gone\.pth.*404"):
        read_state_dict(f"{address}/gone.pth")
    torch.save(WEIGHTS, folder / "swin-0123abcd.pth")
    with pytest.raises(ConnectionError, match="invalid hash"):
        read_state_dict(f"{address}/swin-0123abcd.pth")
    assert not list((tmp_path / "cache").rglob("swin-*"))

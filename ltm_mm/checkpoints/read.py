"""Read weights from a file or URL without running code that the file may hold."""

import contextlib
import os
import pickle
import re
import socket
import sys
import urllib.error
import urllib.parse
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import swapped_argument
from .detect import unwrap
from .optional import HistoryBuffer, barrier, get_external_models, get_mmcls_models

NET_TIMEOUT = 20.0  # seconds without an answer
ZOOS: dict[str, Callable[[], dict[str, str]]] = {
    "open-mmlab": get_external_models,
    "mmcls": get_mmcls_models,
}


def read_state_dict(path: str | os.PathLike, trust: bool = False) -> dict[str, Tensor]:
    """Tensors of a checkpoint, on the CPU, taken out of ``state_dict``, ``model``, ...

    Args and errors as :func:`read_file`; also a ValueError if there are no weights in it.

    Returns:
        The state dict, with its ``_metadata`` if it had any.
    """
    content = read_file(path, trust)
    try:
        return unwrap(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_file(path: str | os.PathLike, trust: bool = False) -> Any:
    """What a checkpoint's file holds, on the CPU.

    Args:
        path: a local PyTorch or ``.safetensors`` file, an http(s) URL (kept in torch
            hub's cache), or ``open-mmlab://name``, ``mmcls://name``.
        trust: unpickle the file even if that may run code from it.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: the download failed.
        ValueError: not a checkpoint, truncated, or it needs ``trust``.
    """
    name = os.fspath(path)
    if swapped := swapped_argument(name, "checkpoint"):
        raise ValueError(swapped)
    scheme = name.partition("://")[0] if "://" in name else None
    if scheme in ZOOS:
        file = _fetch(_look_up(name, ZOOS[scheme]()), name)
    elif scheme in ("http", "https"):
        file = _fetch(name, name)
    elif scheme is None:
        file = Path(name).expanduser()
    else:
        raise ValueError(f"cannot read {name}: give a local path or an http(s) URL")
    if file.is_dir():
        raise ValueError(f"checkpoint {name} is a folder: name the file in it")
    if not file.is_file():
        raise FileNotFoundError(
            f"checkpoint {name} does not exist: give a local file or an https URL"
        )
    try:
        return _read_safetensors(file) if file.suffix == ".safetensors" else _unpickle(file, trust)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _unpickle(file: Path, trust: bool) -> Any:
    """``torch.load``, with one ValueError for all the ways in which it can fail."""
    try:
        with contextlib.nullcontext() if trust else _harmless_globals():
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"unpickling needs the module {error.name!r}, not installed here"
        ) from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        unknown = re.findall(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        if not trust and isinstance(error, pickle.UnpicklingError) and unknown:
            raise ValueError(
                f"the file holds more than weights ({unknown[0]}), and loading that can run code "
                "from it: if you trust its origin, pass --trust-checkpoint (trust=True)"
            ) from error
        raise ValueError(
            f"not a PyTorch checkpoint, or a truncated one ({_size(file)}): download or copy it "
            "again"
        ) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"not a safetensors file, or a truncated one ({_size(file)}): download or copy it again"
        ) from error


def _size(file: Path) -> str:
    return f"{file}, {file.stat().st_size} bytes"


def _harmless_globals() -> contextlib.AbstractContextManager:
    """Allow what mmengine's and common trainers' checkpoints hold beside tensors.

    mmengine's own list has the builtin ``getattr``, with which a file can reach about
    anything; here it reaches only the four statistics that a HistoryBuffer refers to.
    """
    multiarray = getattr(np, "_core", None) or np.core
    allowed: list = [np.ndarray, np.dtype, HistoryBuffer, Namespace, slice, int, defaultdict]
    allowed += {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
    for package in ("numpy.core", "numpy._core"):  # numpy 1's name and numpy 2's
        for function in ("_reconstruct", "scalar"):
            path = f"{package}.multiarray.{function}"
            allowed.append((getattr(multiarray.multiarray, function), path))
    allowed.append((_history_statistic, "builtins.getattr"))
    return torch.serialization.safe_globals(allowed)


def _history_statistic(holder: object, name: str) -> object:
    """Stands for ``getattr`` in a HistoryBuffer's pickle."""
    if holder is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"Unsupported function builtins.getattr on {name}")
    return getattr(holder, name)


def _look_up(name: str, zoo: dict[str, str]) -> str:
    key = name.partition("://")[2]
    if key not in zoo:
        raise ValueError(f"cannot read {name}: the installed mmengine knows no model of that name")
    return zoo[key]


def _fetch(url: str, name: str) -> Path:
    """Download into torch hub's cache, once per machine; rank 0 goes first.

    Args:
        url: where it is.
        name: as the user gave it, for messages.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        barrier()
    try:
        return _download(url)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        where = name if name == url else f"{name}, {url}"
        raise ConnectionError(f"could not download {where} ({error}): give a local file") from error
    finally:
        if first:
            barrier()


def _download(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urllib.parse.urlparse(url).path).name
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    checksum = re.search(r"-([a-f0-9]{8,})\.\w+$", file.name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NET_TIMEOUT)
    try:
        torch.hub.download_url_to_file(
            url, str(file), checksum and checksum[1], progress=sys.stderr.isatty()
        )
    finally:
        socket.setdefaulttimeout(timeout)
    return file

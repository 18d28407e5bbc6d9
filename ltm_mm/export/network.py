"""Export of a network in memory, from any library; needs no OpenMMLab package."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..checks.outputs import check_file
from ..errors import UserError
from .check import Difference, compare, other_sizes
from .files import RUNTIMES, import_onnxruntime, import_package, open_file
from .onnx import require_onnx, save_onnx
from .openvino import save_openvino
from .program import export_program, save_program


def export(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    dynamic_size: bool = False,
    check: bool = True,
) -> list[Difference]:
    """Write a network as a file that runs without this package, and compare the two.

    The file takes any number of images. It holds a copy in eval mode and single precision, and
    returns the model's tensors in order, also from dictionaries and transformers' outputs.

    Args:
        model: takes one tensor of images, e.g. a model of timm, torchvision or transformers, with
            :func:`ltm_mm.apply` or without.
        example: images ``(B, C, H, W)``; only their size and channels matter.
        path: ``.onnx``, ``.xml`` (OpenVINO's, with a ``.bin`` beside it) or ``.pt2``
            (``torch.export``).
        dynamic_size: accept any height and width from half of the example's up, if the model's own
            code allows it.
        check: run the file on generated images, of four sizes with ``dynamic_size``, and compare.

    Returns:
        The differences found, one per batch; empty without ``check``.

    Raises:
        ValueError: if the input does not fit, or the model cannot be traced.
        UserError: if the file cannot be written, or differs from the model by more than rounding.
        ImportError: if a package is missing; the message states how to install it.
    """
    path = _checked_path(path, check)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a built model (an nn.Module), got {model!r}")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError("the model has no weights: it is on the meta device")
    if not isinstance(example, Tensor) or example.ndim != 4 or not min(example.shape[1:]):
        raise ValueError(f"example must be images (B, C, H, W), got {_described(example)}")
    network = _Tensors(deepcopy(model).cpu().float()).eval()
    channels, size = example.shape[1], (example.shape[2], example.shape[3])
    with torch.no_grad():
        outputs = list(_named(network.model(torch.zeros(1, channels, *size))))
    names = [name for name, _ in outputs]
    sizes = other_sizes(size, 1) if dynamic_size else [size]
    smallest = min(min(s) for s in sizes) if dynamic_size else min(size)
    try:
        program = export_program(network, size, channels, smallest, dynamic_size)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = ": its code may depend on sizes, try dynamic_size=False" if dynamic_size else ""
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.export{hint} ({reason[0]})"
        ) from error
    facts = dict(made_by=f"ltm_mm {__version__}", outputs=names, smallest=smallest)
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    if path.suffix == ".pt2":
        save_program(program, path, metadata)
    elif path.suffix == ".onnx":
        save_onnx(program, path, names, metadata)
    else:
        save_openvino(program, path, names, metadata)
    return _compared(network, path, sizes, channels) if check else []


class _Tensors(nn.Module):
    """A network whose outputs are a tuple of tensors, however they are nested.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, C, H, W)`` -> what the network returns."""
        return tuple(tensor for _, tensor in _named(self.model(x)))


def _named(out: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output by name."""
    if isinstance(out, Tensor):
        yield name or "output", out
    elif isinstance(out, Mapping):
        for key, value in out.items():
            yield from _named(value, f"{name}.{key}" if name else str(key))
    elif isinstance(out, list | tuple):
        for index, value in enumerate(out):
            yield from _named(value, f"{name or 'output'}{index}")
    elif out is not None:
        raise ValueError(f"a file holds tensors only, the model returns {_described(out)} too")


def _checked_path(path: str | Path, check: bool) -> Path:
    """The file; it can be written, and the packages that write and run it are there."""
    if not isinstance(path, str | Path):
        raise ValueError(f"path must be a file's name, got {path!r}")
    path = Path(path)
    if path.suffix not in RUNTIMES:
        raise ValueError(f"path must end in {', '.join(RUNTIMES)}, got {str(path)!r}")
    check_file("path", path)
    if path.suffix != ".pt2":
        require_onnx()
    if path.suffix == ".xml":
        import_package("openvino", "writing .xml")
    if path.suffix == ".onnx" and check:
        import_onnxruntime("check=True")
    return path


def _compared(
    network: nn.Module, path: Path, sizes: list[tuple[int, int]], channels: int
) -> list[Difference]:
    differences = list(compare(network, open_file(path).run, sizes, channels=channels))
    worst = max(differences, key=lambda difference: (not difference.equal, difference.largest))
    if not worst.equal:
        raise UserError(f"{path} differs from the model by more than rounding at {worst}")
    return differences


def _described(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"

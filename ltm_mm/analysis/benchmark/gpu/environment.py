"""What figures were measured on: software, and what the device can do at most."""

import importlib.metadata
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ....models import LTMSwin
from ..latency import Spread, interleave
from ..report import machine

PACKAGES = ("mmengine", "mmcv", "mmdet", "mmseg", "timm", "torchvision", "triton", "numpy")
# Operators that compute nothing: views, and tensors that are not filled.
_NO_WORK = frozenset(
    {
        *("view", "_unsafe_view", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze"),
        *("slice", "select", "narrow", "alias", "detach", "as_strided", "unbind", "split"),
        *("empty", "empty_like", "new_empty", "empty_strided", "lift_fresh"),
    }
)


def software() -> dict:
    """Versions, the device, switches that decide about precision and kernels."""
    facts: dict = dict(machine=machine(), packages=_versions(), cuda=torch.version.cuda)
    facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    facts["attention"] = [
        name
        for name in ("flash", "mem_efficient", "math", "cudnn")
        if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
    ]
    if "mmcv" in facts["packages"]:
        from mmcv.ops import get_compiling_cuda_version

        facts["mmcv's ops"] = get_compiling_cuda_version()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        facts["gpu"] = dict(
            name=gpu.name,
            memory_gib=round(gpu.total_memory / 2**30, 1),
            processors=gpu.multi_processor_count,
            capability=f"{gpu.major}.{gpu.minor}",
        )
    facts["operators"] = {str(keep): operators(keep) for keep in (None, "balanced", "fast")}
    return facts


def _versions() -> dict[str, str]:
    """Import name -> version, of what is installed."""
    installed = importlib.metadata.packages_distributions()
    return {
        name: importlib.metadata.version(installed[name][0])
        for name in PACKAGES
        if name in installed
    }


def operators(keep: str | None) -> int:
    """Operators that Swin-T calls in a forward pass on a GPU, views left out; counted without one.

    Each launches a kernel, or several; fused attention is counted as what it is made of. Tables
    that are made once per device are counted, too.
    """
    with warnings.catch_warnings(), FakeTensorMode(), torch.no_grad():
        warnings.simplefilter("ignore")
        with torch.device("cuda"):
            model = LTMSwin(arch="tiny", keep=keep).eval()
        image = torch.empty(1, 3, 800, 1216, device="cuda")
        with _Count() as count:
            model(image)
    return count.calls.total()


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, op: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        space, _, name = op._schema.name.partition("::")  # type: ignore[attr-defined]
        if space == "aten" and name not in _NO_WORK:
            self.calls[name] += 1
        return op(*args, **(kwargs or {}))


def ceilings(device: str, rounds: int, small: bool) -> dict:
    """Bytes per second of a large copy, multiply-accumulates per second of a large product.

    Args:
        device: 'cpu' or 'cuda'.
        rounds: rounds of timing that count.
        small: on tensors that take no time.

    Returns:
        ``copy_gb_s`` (bytes read and written) and ``tmac_s`` by precision.
    """
    side = 128 if small else 8192
    source = torch.randn(side, 8 * side, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        runs[str(dtype).removeprefix("torch.")] = lambda a=a, b=b: a @ b  # type: ignore[misc]

    def synchronized(run: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            run()
            if device == "cuda":
                torch.cuda.synchronize()

        return timed

    seconds = interleave({name: synchronized(run) for name, run in runs.items()}, rounds)
    medians = {name: Spread.of(values).median for name, values in seconds.items()}
    return dict(
        copy_gb_s=round(2 * source.nbytes / medians.pop("copy") / 1e9, 1),
        tmac_s={name: round(side**3 / median / 1e12, 3) for name, median in medians.items()},
    )

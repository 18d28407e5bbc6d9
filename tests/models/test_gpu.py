"""Laws on a GPU; `tools/gpu_benchmark.py` runs them. What can run on a CPU, too, does."""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from ltm_mm.merging import record_merges
from ltm_mm.merging.matching import match, rounds
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from tests.models.contract import randomise, same_groups

SWIN = dict(embed_dims=16, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))
MODELS: dict[str, Callable[..., nn.Module]] = {
    "swin": lambda **options: LTMSwin(**SWIN, keep=0.4, drop_path_rate=0.0, **options),
    "swin-plain": lambda **options: LTMSwin(**SWIN, keep=None, drop_path_rate=0.0, **options),
    "vit": lambda **options: LTMViT(
        "tiny", "fast", embed_dims=24, num_heads=2, num_layers=3, **options
    ),
    "efficientvit": lambda **options: LTMEfficientViT("b0", keep="fast", **options),
    "mobilevit": lambda **options: LTMMobileViT("xxs", keep="fast", **options),
}
models = pytest.mark.parametrize("name", MODELS)
swins = pytest.mark.parametrize("name", ["swin", "swin-plain"])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Products in single precision, and no graphs of earlier tests."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def image(device: str) -> Tensor:
    return torch.randn(2, 3, 75, 118, generator=torch.Generator().manual_seed(1)).to(device)


def maps(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(model(x))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    sum(m.float().square().mean() for m in model(x)).backward()
    return [p.grad.clone() for p in model.parameters()]


def pairs(
    run: Callable[[nn.Module, Tensor], Iterable[Tensor]], name: str, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a run gives on the device in single precision, and on the CPU in double."""
    exact, own = randomise(MODELS[name]()), MODELS[name]()
    own.load_state_dict(exact.state_dict())
    with same_groups(device) as again:
        expected = run(exact.double().eval(), image("cpu").double())
        again()
        found = run(own.to(device).eval(), image(device))
    return ((a.cpu(), b.float()) for a, b in zip(found, expected, strict=True))


@models
def test_maps_are_those_of_the_cpu(name: str, device: str) -> None:
    for a, b in pairs(maps, name, device):
        assert_close(a, b, rtol=1e-3, atol=1e-3)


@models
def test_tokens_are_shared_out_and_two_passes_are_equal(name: str, device: str) -> None:
    model = randomise(MODELS[name]()).to(device).eval()
    x = image(device)
    with record_merges(model) as merges:
        recorded = maps(model, x)
    for a, b in zip(recorded, maps(model, x), strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert bool(merges) == (name != "swin-plain")
    for _, merge in merges:
        images, (height, width) = merge.merged.shape[0], merge.grid  # MobileViT's: of patches
        masses = merge.share(torch.ones(images, height, width, 1, device=device))
        expected = torch.full((images, 1), float(height * width), device=device)
        assert_close(masses.sum(1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("keep", "regions"), [(25, 1), (9, 1), (9, 4)])
def test_groups_are_those_of_the_cpu(keep: int, regions: int, device: str) -> None:
    tokens = torch.randn(64, 49, 32, generator=torch.Generator().manual_seed(2))
    penalty = 100 * (torch.arange(49) % regions).expand(64, 49)
    schedule = rounds(49, keep, regions)
    expected = match(tokens, schedule, penalty=penalty, sums=True)
    matched = match(tokens.to(device), schedule, penalty=penalty.to(device), sums=True)
    same = (matched.group_index.cpu() == expected.group_index).all(-1)
    assert same.float().mean() > 0.95  # rounding may decide between two that are nearly alike
    assert_close(matched.sums.cpu()[same], expected.sums[same], rtol=1e-5, atol=1e-5)
    assert_close(matched.roots.cpu()[same], expected.roots[same])
    assert_close(matched.sizes.sum(-1).cpu(), torch.full((64,), 49.0))


@models
@DTYPES
def test_autocast_is_near_single_precision(name: str, dtype: torch.dtype, device: str) -> None:
    model = randomise(MODELS[name]()).to(device).eval()
    x = image(device)
    with same_groups(device) as again:
        expected = maps(model, x)
        again()
        with torch.autocast(device, dtype):
            found = maps(model, x)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert (a.float() - b).norm() < 0.08 * b.norm()


@models
def test_gradients_are_those_of_the_cpu(name: str, device: str) -> None:
    for a, b in pairs(gradients, name, device):
        assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()) + 1e-6)


@swins
@DTYPES
def test_training_step_under_autocast(name: str, dtype: torch.dtype, device: str) -> None:
    model = randomise(MODELS[name]()).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [p.clone() for p in model.parameters()]
    with torch.autocast(device, dtype):
        loss = sum(m.float().square().mean() for m in model(image(device)))
    loss.backward()
    optimizer.step()
    for a, b in zip(model.parameters(), before, strict=True):
        assert a.isfinite().all()
        assert not torch.equal(a, b)


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_checkpointing_changes_nothing(name: str, device: str) -> None:
    models = [MODELS[name](with_cp=with_cp).to(device).train() for with_cp in (False, True)]
    models[1].load_state_dict(randomise(models[0]).state_dict())
    found = [gradients(model, image(device).requires_grad_()) for model in models]
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@swins
def test_one_rank_takes_the_step_of_no_ranks(
    name: str, device: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = randomise(MODELS[name]()).to(device).train()
    expected = gradients(model, image(device))
    store = tmp_path_factory.mktemp("store") / "file"
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    try:
        found = gradients(DistributedDataParallel(model), image(device))
    finally:
        dist.destroy_process_group()
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@swins
def test_compiles_in_one_graph(name: str, device: str) -> None:
    if device == "cpu":
        pytest.skip("tests/export/test_compile.py has it")
    model = randomise(MODELS[name]()).to(device).eval()
    backend = "inductor" if device == "cuda" else "aot_eager"
    found = maps(torch.compile(model, backend=backend, fullgraph=True), image(device))
    for a, b in zip(found, maps(model, image(device)), strict=True):
        # Where tokens are nearly equally alike, rounding decides.
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.gpu
@models
def test_a_pass_waits_for_nothing(name: str) -> None:
    """No operator waits for the GPU, once tables are made."""
    model = randomise(MODELS[name]()).cuda().eval()
    x = image("cuda")
    maps(model, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        maps(model, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@models
def test_cuda_graph_repeats_the_pass(name: str) -> None:
    model = randomise(MODELS[name]()).cuda().eval()
    x, y = image("cuda"), image("cuda").flip(0)
    expected = maps(model, y)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            maps(model, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = maps(model, x)
    x.copy_(y)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)

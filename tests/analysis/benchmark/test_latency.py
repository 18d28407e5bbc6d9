"""The benchmark's statistics, its memory and part meters, and the tool as a whole."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from ltm_mm.analysis.benchmark.baselines import build_models
from ltm_mm.analysis.benchmark.equal_time import equal_time_size, smaller_sizes
from ltm_mm.analysis.benchmark.latency import Spread, interleave, part_times, peak_memory, ratios
from ltm_mm.analysis.benchmark.report import BenchmarkRow, to_markdown
from ltm_mm.analysis.benchmark.run import run_benchmark
from ltm_mm.checkpoints import load_backbone
from ltm_mm.errors import UserError
from ltm_mm.models import LTMSwin
from tests.conftest import ROOT, tool_runner

CPU = torch.device("cpu")


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float):
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0)

        return run


def test_spread_is_median_and_quartiles():
    assert Spread.of([9.0, 1.0, 5.0, 2.0, 4.0]) == Spread(4.0, 2.0, 5.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_ratios_are_taken_within_rounds():
    # The machine slows down threefold; the ratio of each round does not.
    assert ratios([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == Spread(2.0, 2.0, 2.0)
    # The ratio of the medians would be 3 / 2.
    assert ratios([3.0, 1.0, 9.0], [1.0, 2.0, 3.0]).median == 3.0
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


def test_runs_take_turns_and_warm_up():
    clock, order = FakeClock(), []
    runs = {"a": clock.taking(50, 60, 1, 2, 3), "b": clock.taking(70, 80, 4, 5, 6)}
    found = interleave(runs, rounds=3, warmup=2, clock=clock, on_run=order.append)
    assert found == {"a": [1, 2, 3], "b": [4, 5, 6]}
    assert "".join(order) == "abbaabbaab"


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 2), (1, -1)])
def test_no_rounds_are_refused(rounds, warmup):
    with pytest.raises(ValueError, match="rounds must be"):
        interleave({}, rounds, warmup)


def test_time_goes_to_the_part_that_runs():
    clock = FakeClock()
    sizes = dict(embed_dims=8, depths=(2,), num_heads=(1,), strides=(4,), out_indices=(0,))
    model = LTMSwin(**sizes, keep=25)

    def takes(module: nn.Module, seconds: float) -> None:
        forward = module.forward

        def slow(*args: object) -> object:
            clock.now += seconds
            return forward(*args)

        module.forward = slow

    first, second = model.stages[0].blocks
    takes(model.patch_embed, 1)
    takes(first.attn.w_msa.qkv, 10)
    takes(second.merge, 200)
    takes(first.ffn, 1000)
    takes(second.norm2, 10_000)
    takes(second, 100_000)  # its own time: where it merges and unmerges
    found = part_times(model, lambda: model(torch.randn(1, 3, 28, 28)), CPU, clock)
    assert found == dict(attention=10, mlp=1000, merge=100_200, rest=10_001)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_time_of_a_whole_model_goes_to_its_heads_by_name():
    """mmdet calls what is in a head, not the head."""
    clock = FakeClock()

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self) -> None:
            clock.now += self.seconds

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Slow(1)
            self.neck = Slow(10)
            self.roi_head = nn.Module()
            self.roi_head.bbox_head = Slow(100)

        def forward(self) -> None:
            for part in (self.backbone, self.neck, self.roi_head.bbox_head):
                part()
                clock.now += 1000

    model = Detector()
    found = part_times(model, model, CPU, clock)
    assert list(found.items()) == [
        *(("rest", 1), ("neck", 10), ("roi_head", 100), ("post-processing", 3000)),
    ]


def test_peak_memory_is_the_most_held_at_once():
    mega = 2**18  # floats per MiB

    def run() -> None:
        a = torch.empty(4 * mega)
        b = torch.empty(2 * mega)
        del a
        c = torch.empty(1 * mega)
        del b, c
        torch.empty(5 * mega)

    assert peak_memory(run, CPU) == 6 * 2**20
    held = torch.empty(4 * mega)
    assert peak_memory(lambda: held.add_(1.0), CPU) < 1024


def test_baselines_share_the_weights_and_agree():
    models = build_models("ltm-swin-t", ["none", "fast"], ["plain", "mmdet-swin"], (64, 64))
    assert list(models) == ["plain", "mmdet-swin", "keep=none", "keep=fast"]
    x = torch.randn(1, 3, 64, 64)
    maps = []
    for model in models.values():
        model.eval()
        with torch.no_grad():
            maps.append(model(x)[-1])
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps[2], maps[0], rtol=0, atol=0)
    assert (maps[3] - maps[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "ltm-swin-t",
        "ltm-efficientvit-b0",
        "ltm-vit-tiny",
        "ltm-mobilevit-xxs",
        "ltm_swin_upernet_shapes",
        "ltm_vit_maskrcnn_shapes",
        "ltm_vit_upernet_shapes",
        "ltm_mobilevit_ssdlite_shapes",
    ],
)
def test_timms_maps_are_those_of_the_backbone_without_merging(name):
    """Of the same shapes, and with our weights the same; timm's Swin has no norms behind it."""
    source = name if name.startswith("ltm-") else str(ROOT / "configs" / f"{name}.py")
    theirs, ours = build_models(source, ["none"], ["timm"], (64, 96)).values()
    x = torch.randn(1, 3, 64, 96)
    if "swin" in name:
        assert [m.shape for m in ours(x)] == [m.shape for m in theirs(x)]
        return
    load_backbone(ours, {k.removeprefix("model."): v for k, v in theirs.state_dict().items()
                         if k.startswith("model.")})  # fmt: skip
    theirs.norm.load_state_dict(ours.norm.state_dict() if "vit_up" in name else {})
    if theirs.pyramid is not None:
        theirs.pyramid.load_state_dict(ours.pyramid.state_dict())
    with torch.no_grad():
        for a, b in zip(ours.eval()(x), theirs.eval()(x), strict=True):
            assert a.shape == b.shape
            assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.fixture
def tool(monkeypatch):
    """``tools/benchmark.py`` on a command line."""
    return tool_runner("benchmark", monkeypatch)


@pytest.mark.slow
def test_tool_measures_and_writes(tool, tmp_path, capsys):
    tool(
        *("ltm-efficientvit-b0", "--against", "timm", "--ltm", "none", "fast", "--out", tmp_path),
        *("--size", 32, 64, "--batch", 1, 2, "--rounds", 2, "--train-step", "--channels-last"),
        *("--amp", "bf16", "--threads", 1, "--cpu-time"),
    )
    data = json.loads((tmp_path / "ltm-efficientvit-b0.json").read_text())
    names = ["timm", "keep=none", "keep=fast"]
    assert [(r["batch"], r["name"]) for r in data["rows"]] == [
        (b, n) for b in (1, 2) for n in names
    ]
    for row in data["rows"]:
        assert len(row["forward"]) == len(row["train"]) == 2
        assert row["train_memory"] > row["memory"] > 4 * row["parameters"]
    timm, none, fast = data["rows"][:3]
    assert timm["macs"] == none["macs"]
    assert timm["parameters"] == none["parameters"]
    assert fast["macs"]["mlp"] < none["macs"]["mlp"]
    assert "merge" in fast["parts"]
    assert "merge" not in none["parts"]
    assert data["settings"]["size"] == [32, 64]
    out = capsys.readouterr().out
    assert "| keep=fast |" in out
    assert (tmp_path / "ltm-efficientvit-b0.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ltm-swin-x"], "unknown arch 'x' of ltm-swin-x: choose from tiny"),
        (["resnet"], "neither a config file nor one of ltm-swin-"),
        (["no/such/config.py"], "does not exist"),
        (["ltm-swin-t", "--size", 64], "--size takes pairs of height and width"),
        (["ltm-swin-t", "--ltm", "fast", "--shrunk", "--size", 32, 32], "add --ltm none"),
        (["ltm-swin-t", "--size", 0, 64], "--size must be 32 or more, got 0 64"),
        (["ltm-swin-t", "--batch", 1, 0], "--batch must be 1 or more"),
        (["ltm-swin-t", "--rounds", 0], "--rounds must be 1 or more"),
        (["ltm-swin-t", "--threads", 0], "--threads must be 1 or more"),
        (["ltm-swin-t", "--ltm", "quick"], "--ltm quick: give none, light, balanced, fast"),
        (["ltm-swin-t", "--whole-model"], "needs a detector's config"),
        (["ltm-swin-t", "--cpu-time"], "--threads 1"),
        (["ltm-efficientvit-b0", "--against", "mmdet-swin"], "needs a Swin"),
        pytest.param(
            ["ltm-efficientvit-b0", "--size", 32, 32, "--device", "cuda"],
            "no GPU is visible",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_ends_in_one_line(tool, capsys, args, says):
    with pytest.raises(SystemExit) as stop:
        tool(*args)
    assert stop.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert says in line


def test_one_image_too_few_for_batch_normalisation(tmp_path):
    with pytest.raises(UserError, match="--batch 2"):
        run_benchmark(
            "ltm-efficientvit-b0", size=(32, 32), rounds=1, train_step=True, out=str(tmp_path)
        )


def test_several_sizes_and_the_smaller_image(tool, tmp_path, capsys):
    tool(
        *("ltm-efficientvit-b0", "--ltm", "none", "fast", "--out", tmp_path, "--shrunk"),
        *("--size", 256, 256, 256, 128, "--rounds", 1),
    )
    for size in ("256x256", "256x128"):
        rows = json.loads((tmp_path / f"ltm-efficientvit-b0-{size}.json").read_text())["rows"]
        none, fast, smaller = rows
        assert smaller["name"].startswith("keep=none at ")
        assert smaller["name"].endswith("(as long as keep=fast)")
        assert smaller["parameters"] == none["parameters"] < fast["parameters"]
        assert sum(smaller["macs"].values()) <= sum(none["macs"].values())
        assert len(smaller["forward"]) == 1
    assert "256 x 128 pixels" in capsys.readouterr().out


def pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.25, (384, 608)), (9, (800, 1216)), (1, (800, 1216)), (1e-9, (32, 32))],
)
def test_image_of_equal_time_is_the_largest_in_time(share, expected):
    clock, asked = FakeClock(), set()

    def plain(size: tuple[int, int]) -> None:
        asked.add(size)
        clock.now += pixels(size) / pixels((800, 1216))

    def target() -> None:
        clock.now += share

    assert equal_time_size((800, 1216), plain, target, clock) == expected
    assert len(asked) <= 6


@pytest.mark.parametrize("drift", [0.97, 1.03])
def test_image_of_equal_time_whatever_the_machines_speed_does(drift):
    """It becomes several times as fast or as slow, and a pass in seven is disturbed."""
    clock = FakeClock()
    speed, passes, sizes = 1.0, 0, []

    def taking(amount: float) -> None:
        nonlocal speed, passes
        speed, passes = speed * drift, passes + 1
        clock.now += amount * speed * (20 if passes % 7 == 0 else 1)

    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        speed, budget = 1.0, share * pixels((800, 1216))
        plain, target = (lambda size: taking(pixels(size))), partial(taking, budget)
        found = equal_time_size((800, 1216), plain, target, clock)
        sizes.append(pixels(found) / budget)
    assert all(0.9 < size < 1.1 for size in sizes), sizes


def test_sizes_of_smaller_images():
    assert smaller_sizes((64, 100)) == [(32, 32), (32, 64), (64, 96), (64, 100)]
    assert smaller_sizes((224, 224), step=64) == [(64, 64), (128, 128), (192, 192), (224, 224)]
    assert smaller_sizes((20, 31)) == [(20, 31)]
    for size in ((800, 1216), (1216, 800)):
        sizes = smaller_sizes(size)
        assert sizes[-1] == size
        assert all(h % 32 == w % 32 == 0 for h, w in sizes)
        assert [pixels(s) for s in sizes] == sorted({pixels(s) for s in sizes})


def test_realised_over_theoretical_speedup():
    """2x faster at half the work is 1; the column is about our own path without merging."""
    rows = [
        BenchmarkRow("timm", 1, 0, {"mlp": 100}, [9.0], {}, 1),
        BenchmarkRow("keep=none", 1, 0, {"mlp": 80, "rest": 20}, [4.0], {}, 1),
        BenchmarkRow("keep=fast", 1, 0, {"mlp": 40, "rest": 10}, [2.0], {}, 1),
        BenchmarkRow("keep=25", 1, 0, {"mlp": 40}, [2.0], {}, 1),
    ]
    head, _, *lines = to_markdown(rows).splitlines()
    place = head.split(" | ").index("realised / theoretical")
    assert [line.split(" | ")[place] for line in lines] == ["-", "-", "1.00", "0.80"]


@pytest.mark.slow
def test_speed_is_not_lost(tmp_path):
    """Guard, with slack, of what merging is for; one thread, and only its own time."""
    rows = run_benchmark(
        "ltm-swin-t",
        against=["mmdet-swin"],
        ltm=["none", "balanced", "fast"],
        size=(400, 608),
        rounds=5,
        threads=1,
        cpu_time=True,
        out=str(tmp_path),
    )
    speedups = {row.name: ratios(rows[0].forward, row.forward).median for row in rows}
    assert speedups["keep=none"] >= 1.3
    assert speedups["keep=balanced"] >= 1.08 * speedups["keep=none"]
    assert speedups["keep=fast"] >= 1.25 * speedups["keep=none"]

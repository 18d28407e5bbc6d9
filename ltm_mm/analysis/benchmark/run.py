"""What ``tools/benchmark.py`` does: build, measure, print, write."""

from collections.abc import Sequence
from pathlib import Path

from ...checks.options import check_counts
from ...checks.outputs import check_folder
from ...engine.build import named_config
from ...engine.photos import test_size
from ...errors import UserError
from .baselines import build_models
from .bench import Bench
from .latency import clock_of
from .latency import threads as use_threads
from .plots import plot_latency
from .report import BenchmarkRow, machine, save_json, to_markdown
from .runtimes import measure_files


def run_benchmark(
    config: str,
    against: Sequence[str] = (),
    ltm: Sequence[str] = (),
    whole_model: bool = False,
    size: Sequence[int] | None = None,
    batch: Sequence[int] = (1,),
    rounds: int = 10,
    device: str = "cpu",
    threads: int | None = None,
    amp: str | None = None,
    compile: str | None = None,
    channels_last: bool = False,
    train_step: bool = False,
    cpu_time: bool = False,
    equal_time_image: bool = False,
    out: str = "work_dirs/benchmark",
    runtime: Sequence[str] = (),
    detail: str | None = None,
) -> list[BenchmarkRow]:
    """What ``tools/benchmark.py`` does: measure, print the tables, write JSON and picture.

    Args:
        config, against, ltm, whole_model, detail: see :func:`.baselines.build_models`.
        size: height and width of the images, several pairs are measured one by one; None: see
            :func:`ltm_mm.engine.photos.test_size`.
        batch: batch sizes, measured one after the other.
        threads: CPU threads; None: as PyTorch chooses.
        cpu_time: the process's CPU seconds instead of wall time; one thread, CPU only.
        out: folder for the files.
        rounds, train_step, equal_time_image: see :meth:`Bench.measure`.
        runtime: export every model, and time the files in turn with the models: nothing else
            is measured. See :mod:`ltm_mm.analysis.benchmark.runtimes`.
        device, amp, compile, channels_last: see :class:`Bench`.

    Returns:
        One row per image size, batch size and model.

    Raises:
        UserError: for a mistake in the input.
    """
    settings = {k: v for k, v in locals().items() if k != "out"}
    check_counts({"--size": size, "--batch": batch, "--rounds": rounds, "--threads": threads})
    size = test_size(named_config(config)) if size is None else size
    if len(size) % 2 or not size:
        raise UserError(f"--size takes pairs of height and width, got {len(size)} number(s)")
    clock = clock_of(cpu_time, threads, device)
    check_folder("--out", out)
    if runtime and (device != "cpu" or cpu_time or train_step or equal_time_image):
        raise UserError(
            "--runtime times files on the CPU: it goes without --device cuda, --cpu-time, "
            "--train-step and --shrunk"
        )
    images, rows = list(zip(size[::2], size[1::2], strict=True)), []
    for image in images:
        stem = Path(config.rpartition("::")[2]).stem + ("-runtimes" if runtime else "")
        path = Path(out, stem if len(images) == 1 else f"{stem}-{image[0]}x{image[1]}")
        with use_threads(threads):
            metadata = machine()
            models = build_models(config, ltm, against, image, whole_model, detail)
            bench = Bench(models, image, device, amp, compile, channels_last, clock)
            measured: list[BenchmarkRow] = []
            for count in batch:
                if runtime:
                    names = [name for name in models if name not in against]
                    measured += measure_files(bench, names, runtime, count, rounds)
                else:
                    new = bench.measure(count, rounds, train_step, equal_time_image)
                    measured += new
                    print(f"\nbatch {count}, {image[0]} x {image[1]} pixels\n")
                    print(to_markdown(new), flush=True)
                save_json(path.with_suffix(".json"), measured, settings, metadata)
        cpu = f"{metadata['cpu']}, {metadata['threads']} thread(s)"
        on = metadata["gpu"] if device == "cuda" else cpu
        print(f"\n{on}, torch {metadata['torch']}\n  {path.with_suffix('.json')}", flush=True)
        picture = path.with_suffix(".png")
        plot_latency(picture, measured, f"{config}, {image[0]} x {image[1]}, {on}")
        print(f"  {picture}")
        rows += measured
    return rows

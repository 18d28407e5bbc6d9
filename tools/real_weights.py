"""Measure merging next to its baselines, on networks trained on photos: tables and plans.

LTM_SHARED_REAL names the folder of weights and photos [../shared/real], LTM_SHARED_DATA the
folder of other photos [../shared/data].

python tools/real_weights.py swin --time-of ltm-swin-t
python tools/real_weights.py swin --learn 300 --ltm fast --time-of ltm-swin-t
python tools/real_weights.py vit --every 2 --ltm 0.6 balanced
python tools/real_weights.py swin --target-time 0.7 --time-of ltm-swin-t --size-of 800 1216
"""

import ltm_mm  # isort: skip  (first: it provides mmcv's ops where they are not compiled)

import argparse
import importlib.util
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ltm_mm.engine import parse_keep
from ltm_mm.errors import UserError, clean_errors

ROOT = Path(__file__).parent.parent
# Plans of the tables, beside the presets. The ViT's lose 32 and 44 tokens in every block.
LATER = "(None, None, (None, {0}, {0}, {0}, {0}, {0}), None)"
ALL = "({0}, {0}, {0}, None)"
PLANS = {
    "swin": [LATER.format(k) for k in (25, 16, 9)]
    + [ALL.format(k) for k in (37, 25, 16, 9)]
    + ["light", "balanced", "fast"],
    "vit": [str((tuple(196 - loss * (k + 1) for k in range(12)),)) for loss in (8, 11)]
    + ["light", "balanced", "fast"],
    "vit-224": ["light", "balanced", "fast"],
    "efficientvit": ["light", "balanced", "fast"],
}


def shared_models() -> ModuleType:
    """The module that builds the networks and reads the photos.

    Raises:
        UserError: if the folder is not there.
    """
    folder = Path(os.environ.get("LTM_SHARED_REAL", ROOT.parent / "shared" / "real"))
    file = folder.resolve() / "models.py"
    if not file.is_file():
        raise UserError(
            f"no trained networks at {folder}: set LTM_SHARED_REAL to a folder that has them"
        )
    spec: Any = importlib.util.spec_from_file_location("shared_real_models", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photos(shared: ModuleType, network: str, every: int) -> Iterator[tuple[torch.Tensor, object]]:
    """Images and their labels (None: there are none)."""
    if not network.startswith("vit"):
        yield from shared.camvid(448, step=every)
        return
    data = Path(os.environ.get("LTM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    files = sorted((data / "coco_mini" / "val2017").glob("*.jpg"))[::every]
    if not files:
        raise UserError(f"no photos at {data}: set LTM_SHARED_DATA to a folder with coco_mini")
    for file in files:
        yield shared.picture(file, 224 if network == "vit-224" else 448, 0.5, 0.5), None


def build(shared: ModuleType, network: str) -> torch.nn.Module:
    """A trained network."""
    if network.startswith("vit"):
        return shared.vit_tiny(224 if network == "vit-224" else 448)
    return getattr(shared, f"street_{network}")()


@torch.no_grad()
def patch_classes(model: Any, image: torch.Tensor) -> torch.Tensor:
    """A ViT's classifier on each of its patch tokens: ``(1, classes, h, w)``."""
    patches = model.forward_features(image)[:, model.num_prefix_tokens :]
    side = round(patches.shape[1] ** 0.5)
    return model.head(patches).unflatten(1, (side, side)).permute(0, 3, 1, 2)


class Scores:
    """Mean IoU of every row against the labels."""

    def __init__(self, shared: ModuleType, labels: list) -> None:
        self.shared, self.labels = shared, labels
        self.predicted: dict[int, list[np.ndarray]] = {}

    def __call__(self, row: Any, place: int, classes: np.ndarray) -> None:
        """Store a prediction; after the last one compute the metric."""
        maps = self.predicted.setdefault(id(row), [])
        maps.append(classes.astype(np.uint8))
        if place == len(self.labels) - 1:
            row.metrics["mIoU"] = self.shared.miou(maps, self.labels)
            self.predicted.pop(id(row))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "network",
        choices=list(PLANS),
        help="vit classifies all patches at 448 px, vit-224 the whole photo",
    )
    add("--ltm", nargs="+", metavar="KEEP", help="plans [those of the tables and the presets]")
    add("--every", type=int, default=1, metavar="K", help="every K-th photo [1]")
    add("--rounds", type=int, default=5, help="timed rounds; 0: no timing [5]")
    add("--baselines", nargs="*", default=["image", "pooling", "tome", "jpeg"], metavar="NAME")
    add("--threads", type=int, help="CPU threads [as PyTorch chooses]")
    add("--cpu-time", action="store_true", help="CPU seconds, with --threads 1")
    add("--out", default="work_dirs/real_weights", metavar="DIR", help="[%(default)s]")
    add("--target-time", type=float, metavar="SHARE", help="print a plan instead of a table")
    add("--logits", action="store_true", help="measure the error of the logits, not of the maps")
    add("--time-of", metavar="NAME", help="take times from this backbone, such as ltm-swin-t")
    add("--size-of", nargs=2, type=int, default=[800, 1216], metavar=("H", "W"))
    add(
        "--learn",
        type=int,
        metavar="STEPS",
        help="also measure plans learned on LTM_SHARED_DATA's photos",
    )
    add("--train", choices=["detail", "weights", "all"], nargs="+", default=["all"], help="[all]")
    add("--together", action="store_true", help="learn for all plans at once")
    add("--lr", type=float, help="learning rate of the weights [chosen for network and plan]")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and measure."""
    args = parse_args()
    with clean_errors(debug=args.debug):
        from ltm_mm.analysis.benchmark.latency import clock_of
        from ltm_mm.checks.outputs import check_folder

        check_folder("--out", args.out)
        clock = clock_of(args.cpu_time, args.threads, "cpu")
        shared = shared_models()
        images, labels = zip(*photos(shared, args.network, args.every), strict=True)
        (print_plan if args.target_time else print_table)(args, shared, images, labels, clock)


def print_table(
    args: argparse.Namespace, shared: ModuleType, images: tuple, labels: tuple, clock: Any
) -> None:
    """Print every plan next to its baselines."""
    timed = stand_in(args)
    plans = {text: parse_keep(text) for text in args.ltm or PLANS[args.network]}
    fidelity = ltm_mm.fidelity(
        build(shared, args.network),
        images,
        plans | (learned_plans(args, shared, plans) if args.learn else {}),
        predict=patch_classes if args.network == "vit" else None,
        baselines=args.baselines,
        rounds=args.rounds,
        threads=args.threads,
        watch=None if labels[0] is None else Scores(shared, list(labels)),
        clock=clock,
        timed=timed,
        saved=lambda image, quality: save_image(shared, args.network, image, quality),
    )
    print(f"\n{args.network}, {len(images)} photos", flush=True)
    if timed:
        print(
            "times, and the smaller images' share of the sides: {} at {} x {}".format(
                args.time_of, *args.size_of
            )
        )
    print(f"\n{fidelity.table()}", flush=True)
    for file in fidelity.save(Path(args.out, args.network)):
        print(f"  {file}")


def save_image(shared: ModuleType, network: str, image: torch.Tensor, quality: int) -> torch.Tensor:
    """A normalised image after saving it as JPEG."""
    from ltm_mm.engine.photos import jpeg

    mean, std = (np.float32(0.5),) * 2 if network.startswith("vit") else (shared.MEAN, shared.STD)
    pixels = image[0].permute(1, 2, 0).numpy() * std + mean
    saved = jpeg((255 * pixels).round().clip(0, 255).astype(np.uint8), quality)
    again = (saved.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(again.transpose(2, 0, 1)[None].copy())


def learned_plans(args: argparse.Namespace, shared: ModuleType, plans: dict) -> dict:
    """Every plan with what was learned for it, or for all plans together."""
    from ltm_mm.analysis.fidelity.compare import LearnedPlan
    from ltm_mm.learning import Settings

    folder = Path(os.environ.get("LTM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    files = [f for f in sorted(folder.rglob("*.jpg")) if "annotations" not in f.parts]
    scale = (0.5, 0.5) if args.network.startswith("vit") else ()
    learn_on = [shared.picture(file, 448, *scale) for file in files]
    side = {"vit": 448, "vit-224": 224}.get(args.network, 320)  # timm's ViT takes no other size
    settings = Settings(steps=args.learn, lr=args.lr, crop=side)
    learned_for: dict = {}
    for train in args.train:
        for named in [plans] if args.together else [{name: keep} for name, keep in plans.items()]:
            model = build(shared, args.network)
            start = time.perf_counter()
            try:
                learned = ltm_mm.learn(model, learn_on, named, train, settings)
            except ValueError as error:
                print(f"{', '.join(named)}, {train}: {error}", flush=True)
                continue
            losses = list(learned.history["held_out"].values())
            print(
                f"{', '.join(named)}: {train} learned on {len(files)} photos in "
                f"{time.perf_counter() - start:.0f} s, held-out loss {losses[0]:.4f} -> "
                f"{min(losses):.4f}",
                flush=True,
            )
            learned_for |= {
                f"{n}, {train} learned": LearnedPlan(k, learned) for n, k in named.items()
            }
            if learned.weights:  # how far the network without merging has drifted
                name = f"nothing merged, {train} learned for {', '.join(named)}"
                learned_for[name] = LearnedPlan(None, replace(learned, details={}))
    return learned_for


def stand_in(args: argparse.Namespace) -> tuple | None:
    """A function that builds the backbone to time, and an image for it."""
    if not args.time_of:
        return None
    from ltm_mm.engine.build import model_builder, named_config

    noise = torch.randn(1, 3, *args.size_of, generator=torch.Generator().manual_seed(0))
    return model_builder(named_config(args.time_of), None), noise


def print_plan(
    args: argparse.Namespace, shared: ModuleType, images: tuple, labels: tuple, clock: Any
) -> None:
    """Print the plan with the least error within a time budget."""
    from ltm_mm.analysis.plan.run import choose_plan, report

    chosen = choose_plan(
        build(shared, args.network),
        images,
        args.target_time,
        outputs=(lambda model, image: [model(image)]) if args.logits else None,
        timed=stand_in(args),
        rounds=args.rounds,
        threads=args.threads,
        clock=clock,
    )
    print(f"\n{args.network}, {len(images)} photos\n\n{report(chosen, args.target_time)}")


if __name__ == "__main__":
    main()

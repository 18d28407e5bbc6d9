"""Draw what merging does, from a config: what ``tools/visualize.py`` calls."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import set_random_seed
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..adapters import merges, remove
from ..checkpoints import load_into
from ..checks.outputs import check_folder
from ..engine import UserError, load_config, parse_keep, use_ltm
from ..engine.merging_blocks import mask_modules
from ..engine.run import drop_pretrained
from ..errors import naming
from .artist import Artist, Points
from .figures import DPI

LOW, HIGH = 10, 1200  # dots per inch: figures are 12 inches wide
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def visualize(
    config: str,
    image: str,
    checkpoint: str | None = None,
    out_dir: str | None = None,
    points: Points | None = None,
    blocks: Sequence[int] | None = None,
    score_thr: float = 0.3,
    trust_checkpoint: bool = False,
    ltm: str | None = None,
    cfg_options: Mapping[str, object] | None = None,
    device: str = "cpu",
    seed: int = 0,
    dpi: int = DPI,
) -> list[Path]:
    """Draw merge maps, which pixels share a token, and predictions.

    Args:
        config: see :func:`ltm_mm.engine.load_config`; its backbone merges, or ``ltm`` is given.
        image: an image, or a folder of images.
        checkpoint: a whole model's or a backbone's, plain or merging; None: as a training
            would start.
        out_dir: for the pictures, a folder per image; default ``work_dirs/<config's
            name>/visualize``.
        points: (x, y) in pixels, whose groups are shown; None: chosen by detail.
        blocks: positions among the blocks that merge (-1: the last) whose groups are drawn;
            None: an early, a middle and a late one.
        score_thr: instances below this score are not drawn.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        ltm: exchange the backbone, see :func:`ltm_mm.engine.parse_keep`.
        cfg_options: changes to the config.
        device: that the model runs on.
        seed: of the weights that start fresh.
        dpi: pixels per inch of the figures, which are 12 inches wide.

    Returns:
        The files written.

    Raises:
        UserError: for a mistake in the input. Of a folder, images that cannot be read are
            left out and named at the end.
    """
    if not LOW <= dpi <= HIGH:
        raise UserError(f"--dpi must lie in {LOW}..{HIGH}, got {dpi}")
    files = find_images(image)
    cfg = load_config(config, cfg_options)
    if not cfg.get("model"):
        raise UserError(f"{cfg.filename} has no model, which is needed here")
    folder = Path(out_dir or Path("work_dirs", Path(cfg.filename).stem, "visualize"))
    check_folder("--out-dir", folder)
    if ltm is not None:
        print("\n".join(use_ltm(cfg, parse_keep(ltm))), flush=True)
    pair = build_pair(cfg, checkpoint, trust_checkpoint, device, seed)
    artist = Artist(
        pair.merged, pair.plain, pipeline_of(cfg), pair.classes, pair.caption, dpi, blocks
    )
    written: list[Path] = []
    failed: list[str] = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for file, place in _places(files, folder):
            try:
                written += artist.draw(file, place, points, score_thr)
            except UserError as error:
                if len(files) == 1:
                    raise
                failed.append(str(error))
                tqdm.write(f"left out: {error}", file=sys.stderr)
    print("\n".join(["Done.", *_places_written(written, folder)]), flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(files)} images were left out, see above")
    return written


class Pair(NamedTuple):
    """A model with and without merging, the same weights in both."""

    merged: nn.Module
    plain: nn.Module
    classes: Sequence[str] | None
    caption: str


def build_pair(cfg: Config, checkpoint: str | None, trust: bool, device: str, seed: int) -> Pair:
    """Build the model of a config with and without merging.

    Raises:
        UserError: if the model does not merge or the checkpoint does not fit.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used here ({reason}): give cpu") from error
    cfg = deepcopy(cfg)
    use_ltm(deepcopy(cfg), None)  # says so if there is nothing to exchange
    if checkpoint:
        drop_pretrained(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        set_random_seed(seed)
        merged = MODELS.build(cfg.model)
        if not mask_modules(merged):
            raise UserError(
                f"the model of {cfg.filename} merges no tokens: give --ltm balanced, or set "
                "model.backbone.keep"
            )
        with _quiet():
            merged.init_weights()
        weights = "untrained weights"
        if checkpoint:
            weights = f"weights {Path(checkpoint).name}"
            with naming(checkpoint):
                load_into(merged, checkpoint, trust=trust)
        elif "Pretrained" in str(cfg.model):
            weights = "pretrained backbone, untrained heads"
        classes = class_names(cfg)
    plain = plain_model(merged, cfg)
    for model in (merged, plain):
        model.to(device).eval()
    return Pair(merged, plain, classes, f"{Path(cfg.filename).stem}, {weights}")


def plain_model(merged: nn.Module, cfg: Config) -> nn.Module:
    """The model without merging, with the weights that the merging one has now.

    Args:
        merged: the model; not a wrapper for distributed training.
        cfg: what it was built from.

    Raises:
        UserError: if the config's backbone cannot be exchanged.
    """
    if merges(merged):
        return plain_twin(merged)
    cfg = deepcopy(cfg)
    use_ltm(cfg, None)
    drop_pretrained(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        plain = MODELS.build(cfg.model)
    share_weights(merged, plain)
    return plain


def share_weights(merged: nn.Module, plain: nn.Module) -> None:
    """Load a merging model's weights into its plain twin.

    Raises:
        ValueError: if the two are not twins.
    """
    missing, unused = plain.load_state_dict(merged.state_dict(), strict=False)
    odd = [*missing, *(key for key in unused if ".merge." not in key)]
    if odd:
        raise ValueError(f"the plain model is no twin of the merging one: {odd[0]} differs")


def plain_twin(model: nn.Module) -> nn.Module:
    """A plain copy of a model that :func:`ltm_mm.apply` was used on.

    Raises:
        ValueError: if it was not: build the config again with ``keep=None`` then, and
            :func:`share_weights`.
    """
    if not merges(model):
        raise ValueError(f"ltm_mm.apply was not used on this {type(model).__name__}")
    return remove(deepcopy(model))


def find_images(source: str) -> list[Path]:
    """The image, or the images of a folder, in order of their names."""
    path = Path(source).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{source}: there is no such image or folder")
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise UserError(f"{source} holds no image: a name must end in {', '.join(SUFFIXES)}")
    return files


def some_images(dataset: Dataset, count: int) -> list[Path]:
    """Files of images of a data set, evenly spread over it; always the same ones."""
    count = min(count, len(dataset))
    places = [k * len(dataset) // count for k in range(count)]
    return [Path(dataset.get_data_info(place)["img_path"]) for place in places]


def pipeline_of(cfg: Config, first: str = "test_dataloader") -> Compose:
    """The config's test pipeline without the steps that load annotations.

    Args:
        cfg: the config.
        first: the loader that is looked at first; then those for testing and validation.
    """
    for key in (first, "test_dataloader", "val_dataloader"):
        dataset = (cfg.get(key) or {}).get("dataset") or {}
        while "pipeline" not in dataset and ("dataset" in dataset or "datasets" in dataset):
            dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
        if dataset.get("pipeline"):
            break
    else:
        raise UserError(f"{cfg.filename} has no test_dataloader with a pipeline, needed here")
    steps = [t for t in dataset["pipeline"] if "Annotations" not in str(t["type"])]
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return Compose(steps)


def class_names(cfg: Config) -> Sequence[str] | None:
    """Names of the classes that the config's test set has, in its own scope."""
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    known = dict(dataset.get("metainfo") or {})
    if "classes" not in known and isinstance(dataset.get("type"), str):
        with DATASETS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
            known = getattr(registry.get(dataset["type"]), "METAINFO", {})
    classes = known.get("classes")
    return classes if isinstance(classes, (tuple, list)) else None


def _places(files: Sequence[Path], folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each image and the folder for its pictures; with a progress bar for several."""
    stems = [file.stem for file in files]
    for file in tqdm(files, unit="image", disable=len(files) == 1):
        # Two images of one name keep their suffixes, so that none overwrites the other's.
        yield file, folder / (file.stem if stems.count(file.stem) == 1 else file.name)


def _places_written(files: Sequence[Path], folder: Path) -> list[str]:
    """Lines that say where the pictures are: by name for one image, by folder for several."""
    places = {file.parent for file in files}
    if len(places) <= 1:
        return [f"  {file}" for file in files]
    return [f"  {len(files)} pictures of {len(places)} images in {folder}"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mmengine from logging how every single parameter was drawn."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Draw what merging does, from a config: what ``tools/visualize.py`` calls."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from tqdm import tqdm

from ..checks.outputs import check_folder
from ..checks.weights import named_weights
from ..engine import load_config, parse_keep, use_ltm
from ..engine.build import model_builder, plain_model
from ..engine.convert import set_detail
from ..engine.merging_blocks import mask_modules
from ..engine.photos import class_names, find_images, pipeline_of
from ..errors import UserError
from .figures import DPI
from .merge_visualizer import MergeVisualizer, Points

LOW, HIGH = 10, 1200  # dots per inch: figures are 12 inches wide


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
    detail: str | None = None,
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
        ltm: convert the backbone, see :func:`ltm_mm.engine.parse_keep`.
        cfg_options: changes to the config.
        device: that the model runs on.
        seed: of the weights that start fresh.
        dpi: pixels per inch of the figures, which are 12 inches wide.
        detail: a file of ``tools/learn.py``.

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
    set_detail(cfg, detail, ltm)
    folder = Path(out_dir or Path("work_dirs", Path(cfg.filename).stem, "visualize"))
    check_folder("--out-dir", folder)
    if ltm is not None:
        print("\n".join(use_ltm(cfg, parse_keep(ltm))), flush=True)
    pair = build_pair(cfg, checkpoint, trust_checkpoint, device, seed)
    visualizer = MergeVisualizer(
        pair.merged, pair.plain, pipeline_of(cfg), pair.classes, pair.caption, dpi, blocks
    )
    written: list[Path] = []
    failed: list[str] = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for file, subfolder in _with_folders(files, folder):
            try:
                written += visualizer.draw(file, subfolder, points, score_thr)
            except Exception as error:  # one photo does not end a folder's run
                if len(files) == 1 or isinstance(error, OSError | MemoryError):
                    raise
                why = error if isinstance(error, UserError) else f"{file}: {error!r}"
                failed.append(str(why))
                tqdm.write(f"left out: {why}", file=sys.stderr)
    print("\n".join(["Done.", *_summary_lines(written, folder)]), flush=True)
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
    use_ltm(deepcopy(cfg), None)  # says so if there is nothing to convert
    build = model_builder(
        cfg, checkpoint, trust=trust, device=device, seed=seed, start_as_training=True
    )
    merged = build()
    if not mask_modules(merged):
        raise UserError(
            f"the model of {cfg.filename} merges no tokens: give --ltm balanced, or set "
            "model.backbone.keep"
        )
    weights = "untrained weights"
    if checkpoint:
        weights = f"weights {Path(checkpoint).name}"
    elif named_weights(cfg):
        weights = "pretrained backbone, untrained heads"
    plain = plain_model(merged, cfg).to(device).eval()
    return Pair(merged, plain, class_names(cfg), f"{Path(cfg.filename).stem}, {weights}")


def _with_folders(files: Sequence[Path], folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each image and the folder for its pictures; with a progress bar for several."""
    stems = [file.stem for file in files]
    for file in tqdm(files, unit="image", disable=len(files) == 1):
        # Two images of one name keep their suffixes, so that none overwrites the other's.
        yield file, folder / (file.stem if stems.count(file.stem) == 1 else file.name)


def _summary_lines(files: Sequence[Path], folder: Path) -> list[str]:
    """Lines that say where the pictures are: by name for one image, by folder for several."""
    folders = {file.parent for file in files}
    if len(folders) <= 1:
        return [f"  {file}" for file in files]
    return [f"  {len(files)} pictures of {len(folders)} images in {folder}"]

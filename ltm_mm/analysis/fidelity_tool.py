"""What ``tools/fidelity.py`` does: a config's model on a folder of photos (ours)."""

import logging
import math
import numbers
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import load_into, read_state_dict
from ..engine import UserError, evaluate, parse_keep, use_ltm
from ..engine.config import change_config
from ..engine.errors import naming
from ..engine.outputs import check_folder
from ..engine.run import drop_pretrained
from ..merging import merges
from ..presets import Keep
from .baselines import named_config
from .fidelity import CONFIDENT, resized
from .fidelity_models import Size
from .fidelity_report import Fidelity
from .fidelity_run import BASELINES, PRESETS, Subject, compare
from .latency import Clock
from .latency import threads as use_threads

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB
BACKBONE_SIZE = (800, 1216)  # of a backbone without a test pipeline


def run_fidelity(
    config: str,
    checkpoint: str,
    photos: str,
    ltm: Sequence[str] = PRESETS,
    size: Sequence[int] | None = None,
    num_photos: int = 32,
    rounds: int = 5,
    baselines: Sequence[str] = BASELINES,
    threads: int | None = None,
    out: str = "work_dirs/fidelity",
    device: str = "cpu",
    cpu_time: bool = False,
    metric: bool = False,
    trust_checkpoint: bool = False,
    cfg_options: Mapping[str, object] | None = None,
) -> Fidelity:
    """Measure what merging changes in a config's model, print it, write JSON and picture.

    Args:
        config: a detector's, segmentor's or classifier's, see
            :func:`ltm_mm.engine.load_config`; or a backbone's name such as ``ltm-swin-t``.
        checkpoint: the trained model's.
        photos: a photo or a folder of them.
        ltm: plans, see :func:`ltm_mm.engine.parse_keep`.
        size: height and width that photos are brought to after the config's own test pipeline;
            None: as that leaves them.
        num_photos: how many, evenly spread over the folder.
        rounds, baselines, threads: see :func:`.fidelity_run.fidelity`.
        out: folder for the files.
        device: 'cpu' or 'cuda'.
        cpu_time: the process's CPU seconds in place of wall time; one thread, CPU only.
        metric: also evaluate plain and every plan with the config's test set.
        trust_checkpoint: see :func:`ltm_mm.checkpoints.read_state_dict`.
        cfg_options: changes to the config.

    Returns:
        One row per model.

    Raises:
        UserError: for a mistake in the input, before anything is measured.
    """
    _check(size, num_photos, rounds, baselines, threads)
    check_place(out, device)
    clock = clock_of(cpu_time, threads, device)
    plans = {text: parse_keep(text) for text in ltm}
    if None in plans.values():
        raise UserError("--ltm none: the model without merging is always there; name plans")
    cfg = change_config(named_config(config), cfg_options or {})
    files = some_photos(photos, num_photos)
    build = model_builder(cfg, checkpoint, trust_checkpoint, device)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        subject = _subject(cfg, build)
        images = read_photos(cfg, files, size, device)
        with use_threads(threads):
            found = compare(subject, images, plans, baselines, rounds, clock=clock)
    settings = dict(config=config, checkpoint=checkpoint, folder=photos, plans=list(plans))
    found.about.update(settings)
    print(f"\n{_headline(found)}\n\n{found.table()}", flush=True)
    if any("AP" in k and math.isnan(v) for k, v in found.rows[0].agreement.items()):
        print(f"\n-: the plain model detects too little with a score from {CONFIDENT:g} on")
    if metric:
        _evaluate(found, config, checkpoint, out, trust_checkpoint, cfg_options)
        print(f"\n{found.table()}", flush=True)
    written = found.save(Path(out, Path(config.rpartition("::")[2]).stem))
    print("\n" + "\n".join(f"  {file}" for file in written))
    return found


def _check(
    size: Sequence[int] | None,
    num_photos: int,
    rounds: int,
    baselines: Sequence[str],
    threads: int | None,
) -> None:
    numbers = {"--size": size or [1], "--num-photos": [num_photos], "--threads": [threads or 1]}
    for option, values in numbers.items():
        if min(values) < 1:
            raise UserError(f"{option} must be 1 or more, got {' '.join(map(str, values))}")
    if rounds < 0:
        raise UserError(f"--rounds must be 0 (no timing) or more, got {rounds}")
    if unknown := sorted({*baselines} - {*BASELINES}):
        raise UserError(f"--baselines takes {', '.join(BASELINES)}, got {unknown[0]}")


def clock_of(cpu_time: bool, threads: int | None, device: str) -> Clock:
    """Wall time, or the process's CPU seconds, which neighbours do not disturb."""
    if cpu_time and (threads != 1 or device != "cpu"):
        raise UserError("--cpu-time adds up all threads: it needs --threads 1 and --device cpu")
    return time.process_time if cpu_time else time.perf_counter


def check_place(out: str, device: str) -> None:
    """Refuse an output folder that cannot be written, and a device that is not there."""
    check_folder("--out", out)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible to PyTorch; use --device cpu")


def some_photos(source: str, count: int) -> list[Path]:
    """Photos of a folder, evenly spread over it; always the same ones."""
    from ..visualization.run import find_images

    files = find_images(source)
    count = min(count, len(files))
    return [files[k * len(files) // count] for k in range(count)]


def model_builder(
    cfg: Config,
    checkpoint: str | None,
    trust: bool = False,
    device: str = "cpu",
    backbone: bool = False,
) -> Callable[[Keep], nn.Module]:
    """What builds a config's model with any plan and a checkpoint's weights, in eval mode.

    The models share their parameters, so that many take little memory.

    Args:
        cfg: with a whole model, or with a backbone alone.
        checkpoint: a file or address; None: weights drawn at random, always the same.
        trust: see :func:`ltm_mm.checkpoints.read_state_dict`.
        device: where the model goes.
        backbone: build the backbone alone.

    Raises:
        UserError: if the model cannot merge, or the checkpoint cannot be read or does not fit.
    """
    use_ltm(deepcopy(cfg), None)  # says so if there is nothing to merge in
    whole = "type" in cfg.model and not backbone
    with naming(checkpoint):
        weights = read_state_dict(checkpoint, trust) if checkpoint else None
    shared: dict[str, nn.Parameter] = {}

    def build(keep: Keep) -> nn.Module:
        own = deepcopy(cfg)
        use_ltm(own, keep)
        drop_pretrained(own)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), _quiet():
            model = MODELS.build(own.model if whole else own.model.backbone)
            if weights is not None:
                with naming(checkpoint):
                    load_into(model, weights, strict=whole)
        if keep is not None and not merges(model):
            raise UserError(f"--ltm {keep} merges nothing in this model")
        _share(model.to(device), shared)
        return model.eval()

    return build


def _share(model: nn.Module, shared: dict[str, nn.Parameter]) -> None:
    """Give a model the parameters that others of its kind have already, by name and shape."""
    for name, module in model.named_modules():
        for key, own in module._parameters.items():
            if own is not None:
                first = shared.setdefault(f"{name}.{key}", own)
                module._parameters[key] = first if first.shape == own.shape else own


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mmengine from logging each load of the same weights."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _subject(cfg: Config, build: Callable[[Keep], nn.Module]) -> Subject:
    """The model, and how a photo goes through it."""
    plain = build(None)
    if "type" in cfg.model:
        return Subject(plain, build, predict_sample, resize_sample, sample_size)
    return Subject(plain, build, lambda model, image: model(image), resized, tensor_size)


def tensor_size(image: Tensor) -> Size:
    """Height and width of an image ``(1, 3, H, W)``."""
    return image.shape[2], image.shape[3]


def sample_size(sample: Mapping) -> Size:
    """Height and width of a packed sample's image."""
    return sample["inputs"].shape[1], sample["inputs"].shape[2]


def resize_sample(sample: Mapping, size: Size) -> dict:
    """A packed sample whose image has another size; predictions keep the photo's own size.

    Args:
        sample: ``inputs`` ``(3, H, W)`` uint8 and ``data_samples``, as test pipelines pack them.
        size: height and width in pixels.
    """
    image, info = sample["inputs"], deepcopy(sample["data_samples"])
    scaled = resized(image[None].float(), size)[0]
    if not image.is_floating_point():
        scaled = scaled.round().clamp(0, 255)
    height, width = image.shape[1:]
    w_scale, h_scale = info.metainfo.get("scale_factor", (1.0, 1.0))[:2]
    factor = (w_scale * size[1] / width, h_scale * size[0] / height)
    info.set_metainfo(dict(img_shape=tuple(size), scale_factor=factor))
    return dict(sample, inputs=scaled.to(image.dtype), data_samples=info)


def predict_sample(model: nn.Module, sample: Mapping) -> object:
    """What mmdet's, mmseg's or mmpretrain's model predicts, at the photo's own size."""
    from ..visualization.predictions import read_prediction

    found = model.test_step({key: [value] for key, value in sample.items()})[0].cpu()
    if "pred_label" in found:
        return found.pred_label.numpy()
    return read_prediction(found, 0.0)


def read_photos(
    cfg: Config,
    files: Sequence[Path],
    size: Sequence[int] | None,
    device: str,
    backbone: bool = False,
    channels: int = 3,
) -> list[Mapping | Tensor]:
    """All photos as the model takes them, or its backbone; see :func:`run_fidelity`.

    Args:
        cfg: of the model.
        files: the photos.
        size: height and width; None: as they come.
        device: where tensors go.
        backbone: as the backbone takes them: normalised tensors.
        channels: of the backbone's images; others than 3 are read by the config's test pipeline.

    Raises:
        UserError: if one cannot be read.
    """
    pipeline = None
    if files and (("type" in cfg.model and not backbone) or channels != 3):
        from ..visualization.run import pipeline_of

        pipeline = pipeline_of(cfg)
    images = []
    for file in tqdm(files, desc="photos", unit="photo", leave=False):
        try:
            with Image.open(file) as photo:
                photo.load()  # loaders fill up with grey what is missing
                own = None if pipeline else normalised(cfg, photo, size or BACKBONE_SIZE)
        except (OSError, SyntaxError, ValueError) as error:
            if channels == 3 or not isinstance(error, UnidentifiedImageError):
                raise UserError(f"{file} is damaged or no photo ({error})") from error
        if pipeline is not None:
            own = _packed(pipeline, file)
            own = own if size is None else resize_sample(own, (size[0], size[1]))
        if pipeline is not None and backbone:
            own = _inputs(cfg, own)
        images.append(own.to(device) if isinstance(own, Tensor) else own)
    return images


def _packed(pipeline: Compose, file: Path) -> dict:
    # The last two are what mmseg's data sets add and its steps read.
    named = dict(img_path=str(file), img_id=0, seg_fields=[], reduce_zero_label=False)
    try:
        return pipeline(named)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: the config's test pipeline cannot read it ({error})") from error


def _inputs(cfg: Config, sample: Mapping) -> Tensor:
    """A packed sample's image ``(1, C, H, W)``, normalised as the config says."""
    mean, std = (torch.tensor(_preprocessor(cfg)[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((sample["inputs"].float() - mean) / std)[None]


def _preprocessor(cfg: Config) -> Mapping:
    own = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    return {"mean": MEAN, "std": STD, **{k: v for k, v in own.items() if v is not None}}


def normalised(cfg: Config, photo: Image.Image, size: Sequence[int]) -> Tensor:
    """A photo ``(1, 3, H, W)`` of a size, normalised as the config says, else as for ImageNet."""
    mean, std = (np.float32(_preprocessor(cfg)[key]) for key in ("mean", "std"))
    scaled = photo.convert("RGB").resize((size[1], size[0]), Image.BICUBIC)
    pixels = (np.asarray(scaled, np.float32) - mean) / std
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def _headline(found: Fidelity) -> str:
    about = found.about
    height, width = about["size"]
    return (
        f"{about['config']}, {about['photos']} photos of {about['folder']}, the first one "
        f"{height} x {width}, {about['cpu']}, {about['threads']} thread(s), torch {about['torch']}"
    )


def _evaluate(
    found: Fidelity,
    config: str,
    checkpoint: str,
    out: str,
    trust: bool,
    cfg_options: Mapping[str, object] | None,
) -> None:
    """The config's own metrics of the plain model and of every plan."""
    rows = [row for row in found.rows if row.kind in ("plain", "plan")]
    for number, row in enumerate(rows):
        metrics = evaluate(
            config,
            checkpoint,
            work_dir=str(Path(out, f"metric_{number}")),
            trust_checkpoint=trust,
            ltm="none" if row.kind == "plain" else row.name,
            cfg_options=cfg_options,
        )
        row.metrics = {k: float(v) for k, v in metrics.items() if isinstance(v, numbers.Real)}

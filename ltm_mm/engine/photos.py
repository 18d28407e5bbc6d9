"""Photos as a config's model takes them: files, test pipeline, size, names of classes."""

import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from ..checks.sizes import stored_size
from ..errors import PICTURES, UserError, swapped_argument
from .build import scope_of

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.dataset import Compose

Size = tuple[int, int]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB
BACKBONE_SIZE = (800, 1216)  # of a backbone without a test pipeline
PHOTO = (640, 960)  # height and width of the photo whose size after the pipeline is asked for


def find_images(source: str) -> list[Path]:
    """The image, or the images of a folder, in order of their names."""
    path = Path(source).expanduser()
    if not path.is_dir():
        if swapped := swapped_argument(path, "photo"):
            raise UserError(swapped)
        if not path.is_file():
            raise UserError(f"{source}: there is no such image or folder")
        return [path]
    files = [f for f in visible(path) if f.suffix.lower() in PICTURES and f.is_file()]
    if not files:
        raise UserError(f"{source} holds no image: a name must end in {', '.join(PICTURES)}")
    return files


def visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files, such as the ``._*`` that macOS leaves."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def check_whole(file: Path) -> None:
    """Raise for a file that breaks off: loaders fill up what is missing with grey."""
    try:
        with Image.open(file) as image:
            image.load()
    except UnidentifiedImageError:
        return  # a format that only the pipeline's loader knows


def some_images(dataset: Any, count: int) -> list[Path]:
    """Files of images of a data set, evenly spread over it; always the same ones."""
    count = min(count, len(dataset))
    indices = [k * len(dataset) // count for k in range(count)]
    return [Path(dataset.get_data_info(index)["img_path"]) for index in indices]


def train_images(cfg: "Config") -> list[Path]:
    """All image files of a config's train set.

    Raises:
        UserError: there is none, or its files cannot be read.
    """
    dataset_cfg = (cfg.get("train_dataloader") or {}).get("dataset")
    if not dataset_cfg:
        raise UserError(f"{cfg.filename} has no train set: name a folder of photos")
    from mmengine.registry import DATASETS

    from ..checks.loaders import datasets

    try:
        with scope_of(cfg):
            dataset, _ = next(datasets(DATASETS.build(dataset_cfg), "dataset"))
        return some_images(dataset, len(dataset))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the config's train set cannot be read ({reason}): name a folder of photos"
        ) from error


def pipeline_of(cfg: "Config", first: str = "test_dataloader") -> "Compose":
    """The config's test pipeline without the steps that load annotations.

    Args:
        cfg: the config.
        first: the loader that is tried first; then those for testing and validation.
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
    from mmengine.dataset import Compose

    with scope_of(cfg):
        return Compose(steps)


def class_names(cfg: "Config") -> list[str] | None:
    """Names of the classes of a config's test data; None if it does not say."""
    dataset = (cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}).get("dataset") or {}
    while "dataset" in dataset:  # wrappers
        dataset = dataset["dataset"]
    classes = (dataset.get("metainfo") or {}).get("classes")
    if classes is None and dataset.get("type"):
        from mmengine.registry import DATASETS

        dataset_type = dataset["type"]
        if isinstance(dataset_type, str):
            with DATASETS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
                dataset_type = registry.get(dataset_type)
        classes = (getattr(dataset_type, "METAINFO", None) or {}).get("classes")
    return None if classes is None else [classes] if isinstance(classes, str) else list(classes)


def test_size(cfg: "Config") -> Size:
    """Height and width of a photo of 3:2 as the model gets it from the config's test pipeline.

    Padding of the data preprocessor included; 800 x 1216 where the config has no pipeline, or one
    that reads more than a photo.
    """
    if not (cfg.get("test_dataloader") or cfg.get("val_dataloader")):
        return BACKBONE_SIZE
    pipeline = pipeline_of(cfg)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo.png")
        Image.new("RGB", PHOTO[::-1]).save(file)
        try:
            image = _packed(pipeline, file)["inputs"]
        except UserError:
            return BACKBONE_SIZE
    return _padded(cfg, image.shape[1:])


def some_photos(source: str, count: int) -> list[Path]:
    """Photos of a folder, evenly spread over it; always the same ones."""
    files = find_images(source)
    count = min(count, len(files))
    return [files[k * len(files) // count] for k in range(count)]


def size_of(image: Any) -> Size:
    """Height and width of an image ``(1, C, H, W)``, or of a packed sample's."""
    height, width = (image["inputs"] if isinstance(image, Mapping) else image).shape[-2:]
    return height, width


def at_size(image: Any, size: Size) -> Any:
    """An image or a packed sample at another size; itself where it has that size."""
    if size_of(image) == size:
        return image
    return (resize_sample if isinstance(image, Mapping) else resized)(image, size)


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


def save_sample(sample: Mapping, quality: int) -> dict:
    """A packed sample whose image was saved as JPEG of a quality, and read again."""
    image = sample["inputs"]
    pixels = image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return dict(sample, inputs=torch.from_numpy(jpeg(pixels, quality)).permute(2, 0, 1).to(image))


def jpeg(pixels: NDArray, quality: int) -> NDArray:
    """Pixels ``(H, W, 3)`` uint8 after they were saved as JPEG of a quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def add_noise(image: Any, scale: float) -> Any:
    """An image with noise of so many standard deviations, always the same for a size.

    Args:
        image: a normalised tensor, or a packed sample of pixels.
        scale: 1: as much as photos vary.
    """
    if isinstance(image, Mapping):
        return dict(image, inputs=add_noise(image["inputs"].float(), scale * STD[0]))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return image + scale * noise.to(image.device)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, C, h, w)`` at another size, bilinearly; itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return torch.nn.functional.interpolate(
        x, tuple(size), mode="bilinear", align_corners=False, antialias=x.shape[2] > size[0]
    )


def read_photos(
    cfg: "Config",
    files: Sequence[Path],
    size: Sequence[int] | None,
    device: str,
    backbone: bool = False,
    channels: int = 3,
) -> list[Mapping | Tensor]:
    """All photos as a config's model takes them, or its backbone.

    Args:
        cfg: of the model.
        files: the photos.
        size: height and width; None: as the config's test pipeline leaves them.
        device: where tensors go.
        backbone: as the backbone takes them: normalised tensors.
        channels: of the backbone's images; others than 3 are read by the config's test pipeline.

    Raises:
        UserError: if none can be read; one of several is left out with a line.
    """
    pipeline = None
    whole = "type" in cfg.model
    if files and ((whole and not (backbone and size)) or channels != 3):
        pipeline = pipeline_of(cfg)
    images: list = []
    for file in tqdm(files, desc="photos", unit="photo", leave=False):
        try:
            photo_input: Any = _read_photo(cfg, file, size, pipeline, channels)
        except UserError as error:
            if file is files[-1] and not images:  # there is no other one
                raise
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        if pipeline is not None and backbone:
            photo_input = _inputs(cfg, photo_input)
        images.append(photo_input.to(device) if isinstance(photo_input, Tensor) else photo_input)
    return images


def _read_photo(
    cfg: "Config",
    file: Path,
    size: Sequence[int] | None,
    pipeline: "Compose | None",
    channels: int,
) -> Mapping | Tensor:
    """One photo; see :func:`read_photos`."""
    try:
        with Image.open(file) as photo:
            photo.load()  # loaders fill up with grey what is missing
            if pipeline is None:
                return normalised(cfg, photo, size or BACKBONE_SIZE)
    except (OSError, SyntaxError, ValueError) as error:
        if channels == 3 or not isinstance(error, UnidentifiedImageError):
            raise UserError(f"{file} is damaged or no photo ({error})") from error
    assert pipeline is not None
    sample = _packed(pipeline, file)
    return sample if size is None else resize_sample(sample, (size[0], size[1]))


def _packed(pipeline: "Compose", file: Path) -> dict:
    # The last two are what mmseg's data sets add and its steps read.
    named = dict(img_path=str(file), img_id=0, seg_fields=[], reduce_zero_label=False)
    try:
        return pipeline(named)
    except Exception as error:  # an unknown format; a shape of which resizing leaves nothing
        raise UserError(unusable(file, error)) from error


def unusable(file: str | Path, error: Exception) -> str:
    """The line for a photo that a pipeline's step cannot take, an extreme shape perhaps."""
    size = stored_size(str(file))
    shape = f", {size[0]} x {size[1]} pixels (height x width)," if size else ""
    why = " ".join(str(error).split()) or type(error).__name__
    return f"{file}{shape} cannot be used by the config's test pipeline: {why}"


def _inputs(cfg: "Config", sample: Mapping) -> Tensor:
    """A packed sample's image ``(1, C, H, W)``, normalised and padded as the config says."""
    made = _preprocessor(cfg)
    mean, std = (torch.tensor(made[key]).view(-1, 1, 1) for key in ("mean", "std"))
    image = sample["inputs"].float()
    if made.get("bgr_to_rgb") or made.get("to_rgb"):
        image = image.flip(0)
    height, width = _padded(cfg, image.shape[1:])
    padding = (0, width - image.shape[2], 0, height - image.shape[1])
    return torch.nn.functional.pad((image - mean) / std, padding)[None]


def _padded(cfg: "Config", size: Sequence[int]) -> Size:
    """A size as the data preprocessor pads it."""
    divisor = int(_preprocessor(cfg).get("pad_size_divisor") or 1)
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def _preprocessor(cfg: "Config") -> Mapping:
    settings = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    return {"mean": MEAN, "std": STD, **{k: v for k, v in settings.items() if v is not None}}


def in_8_bits(photo: Image.Image) -> Image.Image:
    """A photo of 16 bits by its upper eight, as OpenCV reads it; Pillow would clip it to white.

    Raises:
        ValueError: for floating-point pixels, whose range is not known.
    """
    if photo.mode == "F":
        raise ValueError("its pixels are floating-point numbers, save it with 8 or 16 bits")
    if not photo.mode.startswith("I"):
        return photo
    return Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))


def normalised(cfg: "Config", photo: Image.Image, size: Sequence[int]) -> Tensor:
    """A photo ``(1, 3, H, W)`` of a size, normalised as the config says, else as for ImageNet."""
    mean, std = (np.float32(_preprocessor(cfg)[key]) for key in ("mean", "std"))
    scaled = in_8_bits(photo).convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = (np.asarray(scaled, np.float32) - mean) / std
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()

"""Photos, folders and videos, read one picture at a time with the steps of a test pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from mmengine.dataset import Compose
from numpy.typing import NDArray

from ..engine.photos import check_whole, visible
from ..errors import PICTURES as PHOTOS
from ..errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass
class Picture:
    """A photo or a frame of a video.

    Attributes:
        source: the file it comes from.
        frame: its place in a video, from 0; None for a photo.
        image: ``(H, W, 3)`` uint8 in RGB, turned as its EXIF tag says; None until it is read.
        data: what the test pipeline makes of it.
        fault: why it has no prediction; None: it has one.
    """

    source: Path
    frame: int | None = None
    image: NDArray | None = None
    data: Mapping = field(default_factory=dict)
    fault: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.source) if self.frame is None else f"{self.source}, frame {self.frame}"


def find_sources(names: Sequence[str]) -> list[Path]:
    """Photos and videos: files as they are named, and what folders hold, by name.

    Raises:
        UserError: there is no such file, or a folder holds neither photos nor videos.
    """
    sources: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = [p for p in visible(path) if p.suffix.lower() in PHOTOS + VIDEOS]
            if not inside:
                raise UserError(
                    f"{name} holds no photo or video: a name must end in "
                    f"{', '.join(PHOTOS + VIDEOS)}"
                )
            sources += inside
        elif path.is_file():
            sources.append(path)
        else:
            raise UserError(f"{name}: there is no such photo, video or folder")
    return list(dict.fromkeys(sources))


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEOS


def count_pictures(sources: Sequence[Path]) -> int:
    """Photos, and frames as the videos' headers give them."""
    return sum(max(_frames(path), 1) if is_video(path) else 1 for path in sources)


def frame_rate(path: Path) -> float:
    """Frames per second of a video; 25 where it does not say."""
    video = cv2.VideoCapture(str(path))
    try:
        return video.get(cv2.CAP_PROP_FPS) or 25.0
    finally:
        video.release()


def _frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    try:
        return int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        video.release()


class PictureReader:
    """Reads photos and videos with a test pipeline.

    Args:
        pipeline: its first step loads an image; none of the others loads annotations.
        reduce_zero_label: of the data set; mmseg's steps read it.
    """

    def __init__(self, pipeline: Compose, reduce_zero_label: bool = False) -> None:
        self.load, *prepare = pipeline.transforms
        self.prepare = Compose(prepare)
        self.facts = dict(seg_fields=[], reduce_zero_label=reduce_zero_label)

    def read(self, source: Path) -> Iterator[Picture]:
        """The pictures of a file; one that cannot be read has a ``fault``."""
        if is_video(source):
            yield from self._video(source)
        else:
            yield self._photo(source)

    def _photo(self, source: Path) -> Picture:
        picture = Picture(source)
        if not source.exists():
            picture.fault = "is a link to a file that is gone"
            return picture
        if not source.stat().st_size:
            picture.fault = "is empty"
            return picture
        try:
            loaded = self.load(dict(img_path=str(source), img_id=0, **deepcopy(self.facts)))
            check_whole(source)
        except MemoryError:
            raise
        except Exception:  # each imaging library has its own
            picture.fault = "is damaged or no image"
            return picture
        return self._prepared(picture, loaded)

    def _video(self, source: Path) -> Iterator[Picture]:
        video = cv2.VideoCapture(str(source))
        try:
            frame, count = 0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
            while True:
                there, image = video.read()
                if not there:
                    break
                if getattr(self.load, "to_float32", False):
                    image = image.astype(np.float32)
                size = image.shape[:2]
                loaded = dict(img=image, img_shape=size, ori_shape=size, img_path=str(source))
                yield self._prepared(
                    Picture(source, frame), {**loaded, "img_id": 0, **deepcopy(self.facts)}
                )
                frame += 1
        finally:
            video.release()
        if not frame:
            yield Picture(source, fault="is damaged or no video")
        elif frame < count:
            yield Picture(source, fault=f"breaks off after {frame} of {count} frames")

    def _prepared(self, picture: Picture, loaded: dict) -> Picture:
        try:
            picture.image = _rgb(loaded["img"])
            picture.data = self.prepare(loaded)
        except MemoryError:
            raise
        except Exception as error:  # a photo of one row, say
            height, width = loaded["ori_shape"][:2]
            picture.fault = f"of {width} x {height} pixels cannot be prepared ({reason(error)})"
        return picture


def reason(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _rgb(image: NDArray) -> NDArray:
    """An image as the pipeline loads it, BGR, grey or of more channels, for drawing."""
    image = image if image.ndim == 3 else image[..., None]
    image = image.repeat(3, -1) if image.shape[-1] < 3 else image
    return np.ascontiguousarray(image[..., 2::-1].clip(0, 255).astype(np.uint8))

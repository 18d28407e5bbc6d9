"""Images of a config's own test data, as a file takes them (ours)."""

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor

from ..checks.loaders import annotation_file
from ..errors import UserError


def images(cfg: Config, count: int) -> list[Tensor]:
    """Normalised images ``(1, 3, H, W)``, spread evenly over the test data.

    Args:
        cfg: with a ``test_dataloader`` (or ``val_dataloader``).
        count: as many, or as there are.

    Raises:
        UserError: if there are none.
    """
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    if not loader:
        raise UserError(
            f"--int8 calibrates on test data, and {cfg.filename} has no test_dataloader"
        )
    init_default_scope(cfg.get("default_scope", "mmengine"))
    try:
        dataset = DATASETS.build(loader["dataset"])
        number = len(dataset)
    except ValueError as error:
        if "need at least one array" not in str(error):  # mmengine packing nothing
            raise
        number = 0
    if not number:
        raise UserError(
            f"--int8 calibrates on test data, and {annotation_file(loader)} names no image"
        )
    preprocessor = MODELS.build(cfg.model["data_preprocessor"])
    preprocessor.pad_size_divisor = 1
    step = max(number // count, 1)
    normalised = []
    for index in range(0, number, step)[:count]:
        item = dataset[index]
        batch = preprocessor(
            dict(inputs=[item["inputs"]], data_samples=[item["data_samples"]]), False
        )
        height, width = item["data_samples"].img_shape[:2]
        normalised.append(batch["inputs"][:, :, :height, :width])
    return normalised

"""Build data loaders so that missing and damaged files are named (ours)."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .config import flatten
from .errors import UserError, _chain, message

# After so many images in a row that cannot be read, it is not about single images.
MAX_UNREADABLE = 20


def build_loaders(runner: Runner, *names: str) -> None:
    """Build a runner's data loaders ahead of its loops.

    While training, an image that cannot be read is skipped with a log line and another
    one takes its place, so that a long run survives it; in validation and testing it is
    an error, because the metrics would be wrong without a sign.

    Args:
        runner: its loader configs are replaced with the built loaders.
        names: 'train', 'val', 'test'; one that the config lacks is passed over.

    Raises:
        UserError: a file or folder of the data set is missing or damaged, or no image
            is left in it.
    """
    for name in names:
        cfg = getattr(runner, f"_{name}_dataloader")
        if not isinstance(cfg, Mapping):
            continue
        loader = build_loader(runner, cfg, f"{name}_dataloader")
        for dataset, path in datasets(loader.dataset, f"{name}_dataloader.dataset"):
            check_dataset(dataset, path, labelled=name == "train")
            check_head(runner.model, dataset, path)
            guard(dataset, skip=name == "train")
        setattr(runner, f"_{name}_dataloader", loader)


def build_loader(runner: Runner, cfg: Mapping, name: str) -> DataLoader:
    """A loader as mmengine's loops build it, with errors that name the file and the option."""
    randomness = runner._randomness_cfg
    try:
        return runner.build_dataloader(
            cfg, seed=runner.seed, diff_rank_seed=randomness.get("diff_rank_seed", False)
        )
    except Exception as error:
        for link in _chain(error):
            if isinstance(link, FileNotFoundError):
                raise UserError(missing(runner.cfg, link)) from error
            if isinstance(link, (json.JSONDecodeError, UnicodeDecodeError)):
                raise UserError(
                    f"the annotation file of {name} is not valid JSON ({link}): "
                    f"{annotation_file(cfg)}"
                ) from error
        if "need at least one array to concatenate" in message(error):  # mmengine packing nothing
            raise UserError(
                f"{name} has no image left: is {annotation_file(cfg)} empty?"
            ) from error
        if isinstance(error, KeyError) and annotation_file(cfg):
            raise UserError(
                f"the annotation file of {name} lacks {message(error)!r}: {annotation_file(cfg)}"
            ) from error
        raise


def annotation_file(cfg: Mapping) -> str:
    """Path of the first annotation file that a loader's config names; '' if none."""
    for node in _nodes(cfg):
        if name := node.get("ann_file"):
            return os.path.join(node.get("data_root") or "", name)
    return ""


def _nodes(cfg: object) -> Iterator[Mapping]:
    if isinstance(cfg, Mapping):
        yield cfg
        for child in cfg.values():
            yield from _nodes(child)
    elif isinstance(cfg, (list, tuple)):
        for child in cfg:
            yield from _nodes(child)


def missing(cfg: Config, error: FileNotFoundError) -> str:
    """One line for a missing file of a data set or a metric: its path and who names it."""
    found = re.search(r"'([^']+)'", message(error))
    path = str(error.filename or (found[1] if found else message(error)))
    keys = [
        key
        for key, value in flatten(cfg)
        if re.match(r"(train|val|test)_(dataloader|evaluator)", key)
        and isinstance(value, str)
        and ("ann_file" in key or "data_prefix" in key)
        and value
        and os.path.normpath(path).endswith(os.path.normpath(value))
    ]
    named = f", which {', '.join(keys[:4])} names," if keys else ""
    return f"{path}{named} does not exist; {_where_data(cfg, keys)}"


def _where_data(cfg: Config, keys: list[str]) -> str:
    """How to point a config at one's data."""
    folder = next((k.rpartition(".dataset")[0] for k in keys if ".dataset" in k), "")
    if folder:
        return f"set --cfg-options {folder}.dataset.data_root=DIR to the folder that has it"
    return "set --cfg-options " + " ".join(f"{k}=FILE" for k in keys[:2] or ["..."])


def datasets(dataset: Dataset, path: str) -> Iterator[tuple[Dataset, str]]:
    """The data sets inside wrappers (repeat, concatenate, mix), with their dotted keys."""
    inner = getattr(dataset, "datasets", None)
    if inner is not None:
        for index, child in enumerate(inner):
            yield from datasets(child, f"{path}.datasets.{index}")
    elif isinstance(getattr(dataset, "dataset", None), Dataset):
        yield from datasets(dataset.dataset, f"{path}.dataset")
    else:
        yield dataset, path


def check_dataset(dataset: Dataset, path: str, labelled: bool) -> None:
    """Say at once what would come up after an hour, or never.

    Args:
        dataset: as built.
        path: its dotted key in the config.
        labelled: whether it is an error if no image has an instance.

    Raises:
        UserError: a folder is missing, no image or no instance is left, or some classes
            are not in the annotation file; names the option.
    """
    for key, folder in (getattr(dataset, "data_prefix", None) or {}).items():
        if isinstance(folder, str) and folder and "://" not in folder and not Path(folder).exists():
            raise UserError(
                f"the folder {folder}, which {path}.data_prefix.{key} names, does not exist; "
                f"set --cfg-options {path}.data_root=DIR to the folder that has it"
            )
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes") or ()
    file = getattr(dataset, "ann_file", "") or "the annotation file"
    found = len(getattr(dataset, "cat_ids", classes))
    if found < len(classes):  # mmdet would go on, with the labels shifted
        raise UserError(
            f"{found} of the {len(classes)} classes of {path} are in {file}: "
            f"{_first(classes)}; spell {path}.metainfo.classes as there"
        )
    if not len(dataset):
        raise UserError(f"{path} has no image left: is {file} empty?")
    if labelled and not any(_has_instance(dataset, index) for index in range(len(dataset))):
        raise UserError(f"{path} has no instance of its classes ({_first(classes)}) in {file}")


def check_head(model: nn.Module, dataset: Dataset, path: str) -> None:
    """Refuse a segmentor whose head has fewer classes than the labels it is to learn.

    Args:
        model: of the runner, perhaps wrapped.
        dataset: as built.
        path: its dotted key in the config.

    Raises:
        UserError: names both numbers and the option. mmdet has a hook of its own for this.
    """
    while is_model_wrapper(model):
        model = model.module
    head = getattr(model, "decode_head", None)
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    outputs = getattr(heads[-1], "num_classes", None)
    classes = len((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    if outputs is not None and outputs < classes:
        raise UserError(
            f"{path} has {classes} classes, but the model's head {outputs}: "
            f"set model.decode_head.num_classes={classes} (and that of an auxiliary_head)"
        )


def _has_instance(dataset: Dataset, index: int) -> bool:
    """Whether an image has an instance, as far as the data set is one of instances."""
    info = dataset.get_data_info(index) if hasattr(dataset, "get_data_info") else {}
    return bool(info.get("instances", True))


def _first(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def guard(dataset: Dataset, skip: bool) -> None:
    """Put a :class:`ReadGuard` before each step of a pipeline that reads a file."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", [])
    for index, step in enumerate(steps):
        name = type(step).__name__
        if name.startswith("LoadImage"):
            steps[index] = ReadGuard(step, "img_path", skip)
        elif name.startswith("LoadAnnotations") and getattr(step, "with_seg", False):
            steps[index] = ReadGuard(step, "seg_map_path", False, label_check(dataset))


@dataclass(frozen=True)
class LabelCheck:
    """Whether a label map as loaded has labels that exist.

    On a GPU a label that does not exist ends in an error without a name, and a metric
    leaves its pixels out without a sign.

    Args:
        classes: labels run from 0 to ``classes - 1``.
        ignored: the label of pixels that do not count.
    """

    classes: int
    ignored: int

    def __call__(self, results: Mapping) -> str | None:
        """What is wrong with ``results['gt_seg_map']`` in a few words, None if nothing is."""
        labels = results["gt_seg_map"]
        if labels.ndim != 2:
            return f"has {labels.shape[-1]} channels; a label map has one, the label's number"
        wrong = labels[(labels >= self.classes) & (labels != self.ignored)]
        if not wrong.size:
            return None
        return (
            f"has the label {wrong.flat[0]}; with {self.classes} classes there are 0 to "
            f"{self.classes - 1}, and {self.ignored} for pixels that do not count"
        )


def label_check(dataset: Dataset) -> LabelCheck | None:
    """The check of a data set of mmseg; None for another, whose classes are not its labels."""
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes or not hasattr(dataset, "reduce_zero_label"):
        return None
    return LabelCheck(len(classes), dataset.ignore_index)


class ReadGuard:
    """Answers for the files that a pipeline's loading step cannot read.

    Args:
        step: the loading step.
        key: of the path in the results.
        skip: return None (the data set then takes another image) and log the file, or
            raise a UserError that names it.
        check: what is wrong with the step's results, if anything; always an error.
    """

    def __init__(
        self,
        step: Callable[[dict], dict | None],
        key: str,
        skip: bool,
        check: Callable[[dict], str | None] | None = None,
    ) -> None:
        self.step = step
        self.key = key
        self.skip = skip
        self.check = check
        self.in_a_row = 0
        self.files: set[str] = set()  # unreadable ones seen by this process

    def __call__(self, results: dict) -> dict | None:
        """The step's results, or None for an image to be skipped."""
        try:
            loaded = self.step(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            if not results.get(self.key):
                raise
            return self._unreadable(str(results[self.key]), error)
        self.in_a_row = 0
        if self.check and loaded and (why := self.check(loaded)):
            raise UserError(f"{results[self.key]} {why}")
        return loaded

    def _unreadable(self, file: str, error: Exception) -> None:
        why = _why(file, error)
        if not self.skip:
            raise UserError(
                f"{file} {why}: replace it, or take it out of the data set (without it the "
                "result would not be that of the data set)"
            ) from error
        self.in_a_row += 1
        if self.in_a_row >= MAX_UNREADABLE:
            raise UserError(
                f"{self.in_a_row} images in a row cannot be read, the last one is {file} ({why})"
            ) from error
        if file not in self.files:
            self.files.add(file)
            # ERROR, because ranks other than the first log nothing below it.
            print_log(
                f"{file} {why}: skipped, another image takes its place "
                f"({len(self.files)} skipped so far)",
                logger="current",
                level=logging.ERROR,
            )

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "step":
            raise AttributeError(name)
        return getattr(self.step, name)

    def __repr__(self) -> str:
        return repr(self.step)


def _why(file: str, error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    size = os.path.getsize(file) if os.path.isfile(file) else None
    if size == 0:
        return "is empty"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return "is damaged or no image"

"""Build data loaders so that faults of a data set are reported before training."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import UserError, chain, explain, frames, message, preview
from .annotations import boxes_only, check_labels_loaded, check_loaded, loads
from .coco import CocoSummary, inspect_coco_files
from .heads import check_channels, check_detector, check_head, unwrapped
from .instances import (
    check_instances,
    check_measured,
    check_metric,
    check_object_counts,
    check_save_best,
    check_sizes,
)
from .labels import check_labels, label_check
from .notes import log_warning
from .options import flatten
from .reading import check_files, guard, try_pipeline
from .weights import naming_weights

SKIPPED = "unreadable_images.txt"  # in the folder of a run's log


def build_loaders(runner: Runner, *names: str) -> None:
    """Build a runner's data loaders and evaluators ahead of its loops, and validate them.

    While training, an image that cannot be read is skipped with a log line and another
    one takes its place, so that a long run survives it; in validation and testing it is
    an error, because the metrics would be wrong without a sign.

    Args:
        runner: its configs of loaders and evaluators are replaced with what is built.
        names: 'train', 'val', 'test'; one that the config lacks is passed over.

    Raises:
        UserError: a data set is missing, damaged, or does not fit its classes, its metric, the
            other splits or the model; names file, entry and option.
    """
    check_channels(runner.model)
    sources: set[str] = set()
    known: dict[str, Sequence[str]] = {}
    for name in names:
        cfg = getattr(runner, f"_{name}_dataloader")
        if not isinstance(cfg, Mapping):
            continue
        option = f"{name}_dataloader"
        with _inspected_files(runner.cfg, cfg) as summaries:
            loader = build_loader(runner, cfg, option)
            for dataset, path in datasets(loader.dataset, f"{option}.dataset"):
                file = str(getattr(dataset, "ann_file", ""))
                summary = summaries.get(file)
                if name != "train" and summary is not None and file in sources:
                    log_warning(
                        f"{path} is the training set ({file}): metrics say nothing about new images"
                    )
                sources |= {file} if name == "train" else set()
                check_dataset(runner, dataset, path, summary, name == "train")
                if not getattr(dataset, "return_classes", False):  # names are an input there
                    known[path] = _classes(dataset)
            if name != "train":
                _check_evaluator(runner, name, loader.dataset, summaries)
        _check_same_classes(known)
        _check_batches(loader, option)
        try_pipeline(loader.dataset, f"{option}.dataset")
        setattr(runner, f"_{name}_dataloader", loader)


def _inspected_files(
    cfg: Config, loader: Mapping
) -> AbstractContextManager[dict[str, CocoSummary]]:
    """Summaries of mmdet's files; without mmdet's data sets there are none."""
    scopes = cfg.get("default_scope") == "mmdet" or "mmdet." in str(loader)
    return inspect_coco_files() if scopes else nullcontext({})


def build_loader(runner: Runner, cfg: Mapping, name: str) -> DataLoader:
    """A loader as mmengine's loops build it, with errors that name the file and the option."""
    check_numbers(cfg, name)
    randomness = runner._randomness_cfg
    try:
        return runner.build_dataloader(
            cfg, seed=runner.seed, diff_rank_seed=randomness.get("diff_rank_seed", False)
        )
    except UserError:
        raise
    except Exception as error:
        file = annotation_file(cfg, error)
        for link in chain(error):
            if isinstance(link, FileNotFoundError):
                raise UserError(describe_missing(runner.cfg, link)) from error
            if isinstance(link, (IsADirectoryError, PermissionError)) and link.filename == file:
                raise UserError(
                    f"the annotation file of {name} cannot be read: {file}: {link.strerror}"
                ) from error
            if isinstance(link, (json.JSONDecodeError, UnicodeDecodeError)):
                raise UserError(
                    f"the annotation file of {name} is not valid JSON ({link}): {file}"
                ) from error
        if match := re.search(r"Failed to load `ann_file` (.+)", message(error)):  # mmseg's words
            lost = FileNotFoundError(errno.ENOENT, "does not exist", match[1])
            raise UserError(describe_missing(runner.cfg, lost)) from error
        if "need at least one array to concatenate" in message(error):  # mmengine packing nothing
            raise UserError(f"{name} has no image left: {_why_empty(error, file)}") from error
        if isinstance(error, IndexError) and (line := _index_out_of_range(error)):
            raise UserError(f"{name}: {line} ({file or 'a folder'})") from error
        if isinstance(error, KeyError) and message(error).startswith(("img", "seg_map")):
            raise UserError(f"{name}: data_prefix has no {message(error)!r}, its folder") from error
        if isinstance(error, KeyError) and file and explain(error) is None:
            raise UserError(
                f"the annotation file of {name} lacks {message(error)!r}: {file}"
            ) from error
        if isinstance(error, (ValueError, TypeError)) and explain(error) is None:
            raise UserError(f"{name}: {message(error)} (--debug shows where)") from error
        raise


def check_numbers(cfg: Mapping, name: str) -> None:
    """Refuse numbers that PyTorch's loader would refuse with a traceback.

    Raises:
        UserError: names the option and what it takes.
    """
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        value = cfg.get(key, least)
        if type(value) is not int or value < least:
            raise UserError(f"{name}.{key} must be an integer >= {least}, got {value!r}")
    if not cfg.get("num_workers"):
        for key in ("persistent_workers", "prefetch_factor"):
            if cfg.get(key):
                raise UserError(
                    f"{name}.{key} needs workers, but {name}.num_workers is 0: set "
                    f"{name}.{key}={'False' if key == 'persistent_workers' else 'None'}"
                )


def _check_batches(loader: Any, name: str) -> None:
    """Raise a UserError for a loader that drops all its images as an incomplete batch."""
    try:
        batches = len(loader)
    except TypeError:  # a sampler without an end
        return
    if not batches:
        raise UserError(
            f"{name} has {len(loader.dataset)} images and drops them as an incomplete batch: lower "
            f"{name}.batch_size or set {name}.drop_last=False"
        )


def _building(error: BaseException) -> BaseDataset | None:
    """The data set that was being built when an error was raised."""
    holders = [frame.f_locals.get("self") for frame in frames(error)]
    datasets = [o for o in holders if isinstance(o, BaseDataset) or hasattr(o, "img_suffix")]
    return datasets[-1] if datasets else None


def _index_out_of_range(error: BaseException) -> str | None:
    """Which of a data set's ``indices`` is beyond its end, if one is."""
    dataset = _building(error)
    indices, count = getattr(dataset, "_indices", None), len(getattr(dataset, "data_list", ()))
    for index in indices if isinstance(indices, Sequence) else ():
        if not -count <= index < count:
            return (
                f"its data set's indices have {index}, but it has {count} images, 0 to {count - 1}"
            )
    return None


def _why_empty(error: BaseException, file: str) -> str:
    """Why a data set may hold nothing: a list without entries, or a folder without images."""
    dataset: Any = _building(error)
    indices = getattr(dataset, "_indices", None)
    if indices is not None and not indices:
        return f"its data set's indices are {indices!r}, which takes none"
    suffix = getattr(dataset, "img_suffix", None)
    if suffix is None or file:
        rules = getattr(dataset, "filter_cfg", None)
        return f"is {file} empty?" + (f" Its filter_cfg is {dict(rules)}" if rules else "")
    folder = dataset.data_prefix.get("img_path") or dataset.data_prefix.get("img")
    if not os.path.isdir(folder or ""):
        return f"the folder {folder} does not exist"
    held = {Path(name).suffix for name in os.listdir(folder)} - {""}
    others = f" (but in {preview(sorted(held))}: set img_suffix)" if held else ""
    return f"no name in {folder} ends in {suffix!r}{others}"


def annotation_file(cfg: Mapping, error: BaseException | None = None) -> str:
    """Path of the annotation file that an error is about, or the first one of a loader's config."""
    dataset: Any = _building(error) if error else None
    if getattr(dataset, "ann_file", None):
        return dataset.ann_file
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


@contextmanager
def naming_options(cfg: Config) -> Iterator[None]:
    """Name the config's option beside a file that is missing, and beside weights that fail."""
    try:
        with naming_weights(cfg):
            yield
    except FileNotFoundError as error:
        raise UserError(describe_missing(cfg, error)) from error


def describe_missing(cfg: Config, error: FileNotFoundError) -> str:
    """One line for a missing file of a data set or a metric: its path and who names it."""
    match = re.search(r"'([^']+)'", message(error))
    path = str(error.filename or (match[1] if match else message(error)))
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
    return f"{path}{named} does not exist; {_where_data(keys)}"


def _where_data(keys: list[str]) -> str:
    """How to point a config at one's data."""
    folder = next((k.rpartition(".dataset")[0] for k in keys if ".dataset" in k), "")
    if folder:
        return f"set --cfg-options {folder}.dataset.data_root=DIR to the folder that has it"
    return "set --cfg-options " + " ".join(f"{k}=FILE" for k in keys[:2] or ["..."])


def datasets(dataset: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The data sets inside wrappers (repeat, concatenate, mix), with their dotted keys."""
    several, one = getattr(dataset, "datasets", None), getattr(dataset, "dataset", None)
    if several is not None:
        for index, child in enumerate(several):
            yield from datasets(child, f"{path}.datasets.{index}")
    elif hasattr(one, "__getitem__"):  # mmengine's wrappers are no Dataset of PyTorch's
        yield from datasets(one, f"{path}.dataset")
    else:
        yield dataset, path


def _classes(dataset: Any) -> Sequence[str]:
    return (getattr(dataset, "metainfo", None) or {}).get("classes") or ()


def check_dataset(
    runner: Runner, dataset: Any, path: str, summary: CocoSummary | None, training: bool
) -> None:
    """Say at once what would come up after an hour, or never.

    Args:
        runner: its model is compared with the data set.
        dataset: as built; what is read from its files is guarded afterwards.
        path: its dotted key in the config.
        summary: of its COCO annotation file; None: it has none.
        training: whether it is trained on.

    Raises:
        UserError: names file and option.
    """
    check_folders(dataset, path)
    classes = _classes(dataset)
    check_names(dataset, path)
    if not len(dataset):
        file = getattr(dataset, "ann_file", "")
        raise UserError(f"{path} has no image left: is {file or 'its folder'} empty?")
    _check_indices(dataset, path)
    model = unwrapped(runner.model)
    check_head(model, classes, path, getattr(dataset, "ignore_index", None))
    if summary is not None:
        masks, split = "with_mask" in loads(dataset), path.partition("_")[0]
        advice = boxes_only(runner.cfg, split)
        check_instances(dataset, path, summary, classes, training, masks, advice)
        check_object_counts(summary, classes, runner.cfg)
        if not getattr(dataset, "return_classes", False):
            check_detector(model, classes, path)
        if training:
            check_loaded(model, dataset, path, runner.cfg)
    elif training and not any(_has_instance(dataset, index) for index in range(len(dataset))):
        file = getattr(dataset, "ann_file", "") or "the annotation file"
        raise UserError(f"{path} has no instance of its classes ({preview(classes)}) in {file}")
    images, labels = _files(dataset, summary)
    if line := check_files(images, "images", path, skip=training):
        log_warning(line)
    if summary is not None and images:
        check_sizes(dataset, path, summary)
    if hasattr(dataset, "reduce_zero_label"):
        check_labels_loaded(dataset, path, runner.cfg)
    check_files(labels, "label maps", path, skip=False)
    check_labels(dataset, path)
    record = str(Path(runner.log_dir, SKIPPED)) if training else None
    guard(dataset, training, record, label_check(dataset), path)


def check_folders(dataset: Any, path: str) -> None:
    """Raise a UserError if a folder of a data set does not exist."""
    for key, folder in (getattr(dataset, "data_prefix", None) or {}).items():
        if isinstance(folder, str) and folder and "://" not in folder and not Path(folder).exists():
            raise UserError(
                f"the folder {folder}, which {path}.data_prefix.{key} names, does not exist; "
                f"set --cfg-options {path}.data_root=DIR to the folder that has it"
            )


def _check_indices(dataset: Any, path: str) -> None:
    """Raise a UserError for a number of images that are not there; mmengine would take all."""
    wanted = getattr(dataset, "_indices", None)
    if isinstance(wanted, int) and abs(wanted) > len(dataset):
        file = getattr(dataset, "ann_file", "") or "its folder"
        raise UserError(
            f"{path}.indices is {wanted}, but {file} has {len(dataset)} images to take: give at "
            "most that, or None for all"
        )


def check_names(dataset: Any, path: str) -> None:
    """Raise a UserError for class names that are one text, or not all different.

    Those that a data set's class brings are as they are meant: ImageNet has two cranes.
    """
    classes = _classes(dataset)
    if isinstance(classes, str):  # its letters would be taken for names
        raise UserError(
            f"{path}.metainfo.classes is the text {classes!r}: write a tuple, ({classes!r},)"
        )
    of_class = list((getattr(dataset, "METAINFO", None) or {}).get("classes") or ())
    if list(classes) == of_class:
        return
    twice = [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]
    if twice:
        raise UserError(f"{path}.metainfo.classes has {twice[0]!r} more than once")


def _files(dataset: Any, summary: CocoSummary | None) -> tuple[list[str], list[str]]:
    """Local images of a data set, and its label maps where it is mmseg's."""
    if getattr(dataset, "backend_args", None) or not isinstance(dataset, BaseDataset):
        return [], []
    if summary is not None and dataset._indices is None:
        folder = dataset.data_prefix.get("img") or ""
        return [os.path.join(folder, name) for name in summary.images.values()], []
    if not hasattr(dataset, "reduce_zero_label"):
        return [], []
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    labels = [info["seg_map_path"] for info in infos if info.get("seg_map_path")]
    return [info["img_path"] for info in infos], labels


def _has_instance(dataset: Any, index: int) -> bool:
    """Whether an image has an instance, as far as the data set is one of instances."""
    info = dataset.get_data_info(index) if hasattr(dataset, "get_data_info") else {}
    return bool(info.get("instances", True))


def _check_same_classes(known: Mapping[str, Sequence[str]]) -> None:
    """Raise a UserError unless all data sets name the same classes in one order."""
    named = [(path, list(classes)) for path, classes in known.items() if classes]
    for path, classes in named[1:]:
        if classes != named[0][1]:
            raise UserError(
                f"{named[0][0]}.metainfo.classes is {preview(named[0][1])}, that of {path} "
                f"{preview(classes)}: a label is a place in this list, so all must be one list"
            )


def _check_evaluator(
    runner: Runner, split: str, dataset: Any, summaries: Mapping[str, CocoSummary]
) -> None:
    """Build a split's evaluator and compare its metrics with the split's data set."""
    cfg = getattr(runner, f"_{split}_evaluator")
    if not isinstance(cfg, (Mapping, list, tuple)):
        return
    evaluator = runner.build_evaluator(cfg)
    ((dataset, path), *others) = datasets(dataset, f"{split}_dataloader.dataset")
    data = None if others else summaries.get(str(getattr(dataset, "ann_file", "")))
    if data is not None and len(dataset) < len(data.images):
        log_warning(
            f"{path} has {len(dataset)} of the {len(data.images)} images of {data.file}: COCO's "
            "metrics count the objects of all of them"
        )
    for index, metric in enumerate(evaluator.metrics):
        suffix = f".{index}" if isinstance(cfg, (list, tuple)) else ""
        option = f"{split}_evaluator{suffix}.ann_file"
        check_measured(metric, f"{split}_evaluator{suffix}")
        advice = boxes_only(runner.cfg, split)
        check_metric(metric, option, data, _classes(dataset), unwrapped(runner.model), advice)
    if split == "val":
        check_save_best(evaluator.metrics, runner.cfg)
    setattr(runner, f"_{split}_evaluator", evaluator)

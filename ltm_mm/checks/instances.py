"""Whether a detector's data set, its annotation file, its metric and the model agree.

mmdet numbers labels in the order in which the *file* lists the categories, whatever the order of
``metainfo.classes``; names come from the latter. So both orders must be one, in every split.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from torch import nn

from ..errors import UserError, preview
from .annotations import keeps_run_lengths
from .coco import BEYOND, NO_CATEGORY, NO_CROWD_FLAG, NO_IMAGE, SMALL, UNTRAINED, CocoSummary
from .masks import BAD_MASK, MASK_FAULTS, NO_MASK, RUN_LENGTH
from .notes import log_warning
from .options import flatten
from .sizes import HEADERS, evenly_spaced, image_step, loaded_size, rotation_advice

HALF = "more than half of its annotations cannot be meant so"


def check_instances(
    dataset: Any,
    path: str,
    summary: CocoSummary,
    classes: Sequence[str],
    training: bool,
    masks: bool,
    boxes_only: str,
) -> None:
    """Compare a COCO data set with what its file holds.

    Args:
        dataset: as built by mmdet.
        path: its dotted key in the config.
        summary: of its annotation file.
        classes: of the data set.
        training: whether it is trained on.
        masks: whether its pipeline loads masks.
        boxes_only: how to do without masks, for a message.

    Raises:
        UserError: names file, entry and option.
    """
    check_order(
        [summary.ids[i] for i in dataset.cat_ids], classes, summary, f"{path}.metainfo.classes"
    )
    for fault in (NO_IMAGE, NO_CATEGORY, SMALL, BEYOND):
        line = summary.describe(fault)
        if line and summary.faults[fault][0] * 2 > summary.annotations:
            raise UserError(f"{line}; {HALF}")
        if line and training:
            log_warning(line)
    if masks:
        faults = MASK_FAULTS if training else (NO_MASK, BAD_MASK)
        _refuse(summary, faults, f"{path}.pipeline loads masks: take them out, or {boxes_only}")
    if training and masks and not keeps_run_lengths(dataset):
        why = f"{path}.pipeline has poly2mask=False, which leaves them out: set it to True"
        _refuse(summary, (RUN_LENGTH,), why)
    if not training:
        return
    if not summary.total(summary.instances, classes):
        crowds = summary.total(summary.crowds, classes)
        why = f": all {crowds} are crowds (iscrowd=1), which do not train" if crowds else ""
        raise UserError(
            f"{path} has no instance of its classes ({preview(classes)}) in {summary.file}{why}"
        )
    left = {
        n: c for i, n in summary.ids.items() if n not in classes and (c := summary.instances[i])
    }
    if left:
        log_warning(
            f"{summary.file}: {sum(left.values())} annotations of categories that are not among "
            f"{path}.metainfo.classes are left out: {preview(list(left))}"
        )


def _refuse(summary: CocoSummary, faults: Iterable[str], advice: str) -> None:
    for fault in faults:
        if line := summary.describe(fault):
            raise UserError(f"{line}; {advice}")


def check_order(
    file_order: Sequence[str], classes: Sequence[str], summary: CocoSummary, option: str
) -> None:
    """Refuse class names that the file lacks, has twice, or has in another order.

    Args:
        file_order: names of the file's categories that are among the classes, in the order in
            which labels are numbered.
        classes: as the config names them.
        summary: of the file.
        option: the config's, for the message.
    """
    lacking = [name for name in classes if name not in file_order]
    if lacking:
        near = [difflib.get_close_matches(n, summary.categories, n=1) for n in lacking[:3]]
        hint = ", ".join(f"{n!r} is {m[0]!r}" for n, m in zip(lacking, near, strict=False) if m)
        raise UserError(
            f"{len(set(classes) - set(lacking))} of the {len(classes)} classes of "
            f"{option.removesuffix('.metainfo.classes')} are in {summary.file}: it lacks "
            f"{preview(lacking)} and has {preview(summary.categories)}; spell {option} as there"
            + (f" ({hint}?)" if hint else "")
        )
    twice = [name for name in dict.fromkeys(file_order) if file_order.count(name) > 1]
    if twice:
        ids = [key for key, name in summary.ids.items() if name == twice[0]]
        raise UserError(
            f"{summary.file}: the categories {', '.join(map(repr, ids))} have one name, "
            f"{twice[0]}, which would be labels of their own: give their annotations one "
            "category_id"
        )
    if list(file_order) != list(classes):
        raise UserError(
            f"{summary.file} lists its categories in the order {preview(file_order)}, {option} is "
            f"{preview(classes)}: mmdet numbers labels in the file's order, so names would be "
            "exchanged. Write the classes in the file's order, and bring the 'categories' of all "
            "splits' files into one (docs/own-data.md has a line for that)"
        )


def check_object_counts(summary: CocoSummary, classes: Sequence[str], cfg: Config) -> None:
    """Report an image with more objects than the model gives at most.

    Args:
        summary: of the annotation file.
        classes: of the data set.
        cfg: the whole config.
    """
    limits = [
        (value, key)
        for key, value in flatten(cfg.get("model") or {}, "model")
        if re.search(r"(\btest_cfg\..*\bmax_per_im(g|age)|\bnum_queries)$", key)
        and type(value) is int
        and value > 0
    ]
    totals: Counter = Counter()
    for (image, category), count in summary.objects.items():
        if summary.ids.get(category) in classes:
            totals[image] += count
    (image, most), *_ = totals.most_common(1) or [(None, 0)]
    if limits and most > min(limits)[0]:
        limit, option = min(limits)
        count = sum(total > limit for total in totals.values())
        log_warning(
            f"{summary.file}: {count} images have more objects than the model finds at most, "
            f"{limit} ({option}), the fullest one {most} ({summary.images[image]}): raise it. "
            "COCO's mAP counts the best 100 of an image in any case"
        )


# What metrics take and read after an epoch only: attribute, option, names.
MEASURED = {
    "IoUMetric": ("metrics", "iou_metrics", ("mIoU", "mDice", "mFscore")),
    "CocoMetric": (
        "metric_items",
        "metric_items",
        tuple(f"mAP{size}" for size in ("", "_50", "_75", "_s", "_m", "_l"))
        + tuple(f"AR{size}" for size in ("@100", "@300", "@1000", "_s@1000", "_m@1000", "_l@1000")),
    ),
}


def check_save_best(metrics: Sequence[BaseMetric], cfg: Config) -> None:
    """Refuse a name to save the best checkpoint by that no metric gives.

    Args:
        metrics: of the validation, as built; of others than ``MEASURED`` the names are not known.
        cfg: the whole config.

    Raises:
        UserError: names it and what there is.
    """
    asked = ((cfg.get("default_hooks") or {}).get("checkpoint") or {}).get("save_best")
    known: list[str] = []
    for metric in metrics:
        prefix = f"{metric.prefix}/" if metric.prefix else ""
        if type(metric).__name__ == "CocoMetric" and not metric.classwise:
            items = metric.metric_items or MEASURED["CocoMetric"][2]
            metric_types = [
                metric_type
                for metric_type in metric.metrics
                if not metric_type.startswith("proposal")
            ]
            known += [
                f"{prefix}{metric_type}_{item}" for metric_type in metric_types for item in items
            ]
            known += [
                f"{prefix}{item}" for item in items if len(metric_types) < len(metric.metrics)
            ]
        elif type(metric).__name__ == "IoUMetric":
            known += [f"{prefix}{name}" for name in ("aAcc", "mAcc", *metric.metrics)]
            known += [f"{prefix}{name}" for name in ("mPrecision", "mRecall")]
        else:
            return
    for name in [asked] if isinstance(asked, str) else asked or ():
        if known and name != "auto" and name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
            raise UserError(
                f"default_hooks.checkpoint.save_best is {name!r}, which is not measured: did you "
                f"mean {' or '.join(near or known[:2])}?"
            )


def check_measured(metric: BaseMetric, option: str) -> None:
    """Refuse a name that a metric refuses after an epoch.

    Args:
        metric: as built.
        option: its dotted key in the config.

    Raises:
        UserError: names it and what there is.
    """
    names, key, known = MEASURED.get(type(metric).__name__, ("", "", ()))
    asked = getattr(metric, names, None) if names else None
    for name in [asked] if isinstance(asked, str) else asked or ():
        if name not in known:
            raise UserError(f"{option}.{key} has {name!r}: choose from {', '.join(known)}")


def check_metric(
    metric: BaseMetric,
    option: str,
    data: CocoSummary | None,
    classes: Sequence[str],
    model: nn.Module,
    boxes_only: str,
) -> None:
    """Refuse a COCO metric that would end in a traceback, in -1, or in another set's figures.

    Args:
        metric: as built; others than mmdet's ``CocoMetric`` pass.
        option: dotted key of its annotation file in the config.
        data: what was seen in the data set's own file; None: nothing.
        classes: of the data set.
        model: of the runner.
        boxes_only: how to do without masks, for a message.

    Raises:
        UserError: names file, entry and option.
    """
    summary = getattr(getattr(metric, "_coco_api", None), "summary", None)
    split = option.partition("_")[0]
    metrics = getattr(metric, "metrics", ())
    if "segm" in metrics and getattr(model, "with_roi_head", False) and not model.with_mask:
        raise UserError(
            f"{option.removesuffix('.ann_file')}.metric has 'segm', but the model predicts no "
            f"masks: {boxes_only}"
        )
    if summary is None or getattr(metric, "format_only", False):
        return
    file_order = [summary.ids[i] for i in metric._coco_api.get_cat_ids(cat_names=list(classes))]
    check_order(file_order, classes, summary, f"{split}_dataloader.dataset.metainfo.classes")
    if data is not None and data.file != summary.file:
        _same_images(summary, data, option)
    _refuse(summary, (NO_CROWD_FLAG,), "add it")
    if "segm" in metrics:
        faults = (*MASK_FAULTS, *(fault + UNTRAINED for fault in MASK_FAULTS))
        _refuse(summary, faults, f"add or correct it, or {boxes_only}")
    if not summary.total(summary.instances, classes):
        why = summary.describe(NO_IMAGE) or summary.describe(NO_CATEGORY) or summary.describe(SMALL)
        if crowds := summary.total(summary.crowds, classes):
            why = f"all {crowds} are crowds (iscrowd=1), which do not count"
        advice = (
            "to train without a validation set, val_dataloader=val_cfg=val_evaluator=None in the "
            "config"
            if split == "val"
            else f"to predict only, {option.removesuffix('.ann_file')}.format_only=True and "
            "outfile_prefix"
        )
        raise UserError(
            f"{summary.file}, which {option} names, has no instance of the classes that counts, so "
            f"metrics would be -1{f': {why}' if why else ''}; {advice}"
        )


def _same_images(metric: CocoSummary, data: CocoSummary, option: str) -> None:
    if metric.images == data.images:
        return
    odd = [key for key, name in data.images.items() if metric.images.get(key) != name]
    odd += [key for key in metric.images if key not in data.images]
    raise UserError(
        f"{option} names {metric.file}, which does not list the {len(data.images)} images of "
        f"{data.file} and no others (image {odd[0]!r} is {metric.images.get(odd[0])} there and "
        f"{data.images.get(odd[0])} here): name the same file"
    )


def check_sizes(dataset: Any, path: str, summary: CocoSummary) -> None:
    """Compare the sizes that the file gives with those of images as the pipeline loads them.

    Args:
        dataset: as built by mmdet.
        path: its dotted key in the config.
        summary: of its annotation file.

    Raises:
        UserError: names the first image of another size.
    """
    folder, (_, step) = dataset.data_prefix.get("img") or "", image_step(dataset)
    for key in evenly_spaced(list(summary.images), HEADERS):
        image, size = os.path.join(folder, summary.images[key]), summary.sizes[key]
        loaded = loaded_size(image, step)
        if loaded and loaded != tuple(size):
            why = rotation_advice(image, dataset, path)
            raise UserError(
                f"{summary.file}: image {key!r} is of {size[0]} x {size[1]} pixels (height x "
                f"width) there, {image} of {loaded[0]} x {loaded[1]} as it is loaded"
                + (why or ": were images resized without their annotations?")
            )

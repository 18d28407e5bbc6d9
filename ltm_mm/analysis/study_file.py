"""What a study's YAML file says (ours)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..engine import UserError, parse_keep
from ..models.losses import BOUNDS

STUDY_KEYS = (
    "_base_",
    "config",
    "seeds",
    "metrics",
    "figure",
    "variants",
    "baseline",
    "cfg_options",
)
VARIANT_KEYS = ("ltm", "ib", "from", "steps", "cfg_options", "baseline")


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Args:
        name: its name.
        ltm: the backbone's exchange, see :func:`ltm_mm.engine.parse_keep`; None: as configured.
        start: name of the variant whose last checkpoint of the same seed this one starts from.
        steps: share of the config's training steps; 0 evaluates the checkpoint only.
        cfg_options: changes to the config, on top of the study's.
        ib: the information-bottleneck loss, see :func:`ltm_mm.engine.use_ib`; None: as
            configured.
        baseline: name of the variant that it is compared with; None: the study's.
    """

    name: str
    ltm: str | None = None
    start: str | None = None
    steps: float = 1.0
    cfg_options: Mapping[str, object] = field(default_factory=dict)
    ib: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Study:
    """A study as its YAML file says it.

    ``metrics`` maps labels to the metrics' names; ``figure`` holds the labels that are drawn,
    all if it is empty.
    """

    name: str
    config: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, str]
    variants: Mapping[str, Variant]
    baseline: str | None = None
    cfg_options: Mapping[str, object] = field(default_factory=dict)
    figure: tuple[str, ...] = ()

    def baseline_of(self, variant: str) -> str | None:
        """What a variant is compared with; None for nothing but itself."""
        baseline = self.variants[variant].baseline or self.baseline
        return None if baseline == variant else baseline


def read_study(path: str | os.PathLike) -> Study:
    """Read and check a study.

    Raises:
        UserError: missing, not YAML, or an entry that does not fit; names it and says what
            is allowed.
    """
    path = Path(path)
    content = _read(path)
    _check_keys(content, STUDY_KEYS, f"study {path}", required=("config", "metrics", "variants"))
    seeds = content.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise UserError(f"study {path}: seeds must be a list of ints, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"study {path}: seeds {seeds} has one twice")
    for key in ("metrics", "variants"):
        if not isinstance(content[key], dict) or not content[key]:
            raise UserError(f"study {path}: {key} must map names to entries, got {content[key]!r}")
    variants = {str(k): _read_variant(str(k), v, path) for k, v in content["variants"].items()}
    study = Study(
        name=path.stem,
        config=str(content["config"]),
        seeds=tuple(seeds),
        metrics={str(k): str(v) for k, v in content["metrics"].items()},
        variants=variants,
        baseline=content.get("baseline"),
        cfg_options=content.get("cfg_options") or {},
        figure=tuple(content.get("figure") or ()),
    )
    if unknown := [label for label in study.figure if label not in study.metrics]:
        raise UserError(
            f"study {path}: figure names {unknown[0]!r}, which is no metric; choose from "
            f"{', '.join(study.metrics)}"
        )
    known = list(variants)
    for index, variant in enumerate(variants.values()):
        if variant.start is not None and variant.start not in known[:index]:
            raise UserError(
                f"study {path}: variant {variant.name} starts from {variant.start!r}, which is no "
                f"variant above it; there are: {', '.join(known[:index]) or 'none'}"
            )
    for baseline in (study.baseline, *(v.baseline for v in variants.values())):
        if baseline is not None and baseline not in known:
            raise UserError(
                f"study {path}: baseline {baseline!r} is no variant; choose from {', '.join(known)}"
            )
    return study


def _read(path: Path) -> object:
    """A study's YAML on top of its ``_base_``'s (one file beside it, or a list of them).

    Entries of ``variants``, ``metrics`` and ``cfg_options`` are added or replaced one by one,
    and taken out by ``null``; all else is replaced.
    """
    if not path.is_file():
        raise UserError(f"study {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or "_base_" not in content:
        return content
    names = content.pop("_base_")
    layers = [_read(path.parent / str(n)) for n in (names if isinstance(names, list) else [names])]
    result: dict[str, object] = {}
    for layer in [*layers, content]:
        for key, value in (layer if isinstance(layer, dict) else {}).items():
            below = result.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                merged = {**below, **value}
                value = {k: v for k, v in merged.items() if v is not None}
            result[key] = value
    return result


def _read_variant(name: str, entry: object, path: Path) -> Variant:
    where = f"study {path}: variant {name}"
    entry = {} if entry is None else entry
    _check_keys(entry, VARIANT_KEYS, where)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] == ".":
        raise UserError(f"{where}: a name is a folder's, of letters, digits, '-', '_' and '.'")
    steps, start, ltm = entry.get("steps", 1), entry.get("from"), entry.get("ltm")
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or not 0 <= steps <= 10:
        raise UserError(
            f"{where}: steps is a share of the config's training from 0 to 10, got {steps!r}"
        )
    if steps == 0 and start is None:
        raise UserError(f"{where}: steps 0 evaluates a checkpoint, so 'from' must name a variant")
    if ltm is not None:
        try:
            parse_keep(str(ltm))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    ib = entry.get("ib")
    if ib not in (None, "none", *BOUNDS):
        raise UserError(f"{where}: ib must be none, {' or '.join(BOUNDS)}, got {ib!r}")
    options = entry.get("cfg_options") or {}
    ltm = None if ltm is None else str(ltm)
    return Variant(name, ltm, start, float(steps), options, ib, entry.get("baseline"))


def _check_keys(
    entry: object, allowed: Sequence[str], where: str, required: Sequence[str] = ()
) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must map keys to values, got {entry!r}")
    for key in entry:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in entry:
            raise UserError(f"{where} has no {key!r}")
    if not isinstance(entry.get("cfg_options") or {}, dict):
        raise UserError(f"{where}: cfg_options must map dotted keys to values")

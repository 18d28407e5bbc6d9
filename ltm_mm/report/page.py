"""Put a page together and write it."""

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .. import __version__
from ..analysis.benchmark.report import BenchmarkRow, to_markdown
from ..analysis.fidelity.report import Fidelity
from ..checks.outputs import check_file
from ..errors import UserError
from .by_class import class_table, confusion_figure, confusion_note, precision_curve
from .curves import loss_curve, metric_curves, parts_curve
from .pictures import ReportPicture, data_uri, draw_pictures
from .summary import metric_table, summary
from .work_dir import Run, read_run

TEMPLATE = "report.html"


@dataclass
class Section:
    """What the page shows of one run alone."""

    run: Run
    config: str
    commands: list[str]
    pictures: list[ReportPicture] = field(default_factory=list)
    parts: str | None = None
    classes: list[list[str]] = field(default_factory=list)
    precision: str | None = None
    confusion: str | None = None
    confusion_note: str = ""
    speed: list[list[list[str]]] = field(default_factory=list)
    measured_on: str = ""
    learned: list[list[str]] = field(default_factory=list)
    learned_note: str = ""
    learned_picture: str | None = None


def write_report(
    work_dirs: Sequence[str],
    out: str | None = None,
    images: Sequence[str] | None = None,
    num_images: int = 3,
    score_thr: float = 0.3,
    device: str = "cpu",
) -> Path:
    """Write one HTML page about one or several runs.

    Args:
        work_dirs: of mmengine's layout, see :mod:`ltm_mm.report.work_dir`.
        out: the file; default ``report.html`` in the first work dir.
        images: image files to draw; None: some of each run's validation set.
        num_images: how many of those; 0 draws none.
        score_thr: instances below this score are not drawn.
        device: that the models run on.

    Returns:
        The file written. It needs no other file and no network.

    Raises:
        UserError: if a work dir is missing or holds no run, an image is missing, or a package
            is.
    """
    if num_images < 0:
        raise UserError(f"--num-images must be 0 or more, got {num_images}")
    for name in images or ():
        if not Path(name).is_file():
            raise UserError(f"--images {name}: there is no such file")
    runs = [read_run(folder) for folder in work_dirs]
    _name_apart(runs)
    files = [Path(name) for name in images] if images else num_images
    sections = [_section(run, files, score_thr, device) for run in runs]
    path = Path(out or runs[0].folder / "report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: the file's name must end in .html")
    check_file("--out", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(runs, sections), encoding="utf-8")
    print(f"report: {path}", flush=True)
    return path


def render(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """The page's HTML."""
    loaded = Environment(
        loader=PackageLoader("ltm_mm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loss = loss_curve(runs)
    summaries = [summary(run) for run in runs]
    metrics = metric_table(runs)
    labels = list(dict.fromkeys(label for values in summaries for label in values))
    return loaded.get_template(TEMPLATE).render(
        title=" and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        runs=runs,
        sections=sections,
        summary=[(label, [values.get(label, "–") for values in summaries]) for label in labels],
        metrics=metrics,
        sized=any(label.endswith((" small", " medium", " large")) for label, *_ in metrics),
        metrics_of=[_metrics_of(run) for run in runs],
        loss=loss and data_uri(loss),
        metric_curves=[(name, data_uri(svg)) for name, svg in metric_curves(runs)],
        version=__version__,
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", "tools/report.py", *(str(run.folder) for run in runs)]),
    )


def _section(run: Run, images: Sequence[Path] | int, score_thr: float, device: str) -> Section:
    section = Section(run, run.cfg.pretty_text, _commands(run))
    if images:
        try:
            section.pictures = draw_pictures(run, images, score_thr, device)
        except (UserError, ImportError) as error:
            run.notes.append(f"No pictures: {error}.")
    parts = parts_curve(run)
    section.parts = parts and data_uri(parts)
    _add_classes(section, run.by_class)
    if run.benchmark:
        _add_speed(section, run.benchmark)
    _add_learned(section)
    return section


def _add_learned(section: Section) -> None:
    """The table that ``tools/learn.py --out WORK_DIR/learned.pth`` left, and its picture."""
    table = section.run.folder / "learned.json"
    if not table.is_file():
        return
    try:
        found = Fidelity.read(table)
        section.learned, section.learned_note = found.cells(), found.note()
    except ValueError as error:
        section.run.notes.append(f"{error}.")
        return
    picture = table.with_suffix(".png")
    if picture.is_file():
        with Image.open(picture) as opened:
            section.learned_picture = data_uri(np.array(opened.convert("RGB")))


def _add_classes(section: Section, by_class: dict) -> None:
    """What the test found per class; a file of another version, or a damaged one, adds nothing."""
    if not by_class.get("classes"):
        return
    try:
        section.classes = class_table(by_class)
        precision, confusion = precision_curve(by_class), confusion_figure(by_class)
        section.precision = precision and data_uri(precision)
        section.confusion = confusion and data_uri(confusion)
        section.confusion_note = confusion_note(by_class)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        section.run.notes.append(f"What was found per class cannot be read ({error!r}).")


def _metrics_of(run: Run) -> str:
    """What the final metrics are of."""
    if run.test:
        return f"test of {run.tested}" if run.tested else "test"
    unit = "epoch" if run.by_epoch else "step"
    return f"validation after {unit} {run.val[-1]['step']}" if run.val else ""


def _commands(run: Run) -> list[str]:
    """What was typed, or what trains the same from the config that the run left behind."""
    known = [command.line for command in run.commands]
    if not run.train or any("tools/train.py" in line or "dist_train.sh" in line for line in known):
        return known
    config = shlex.quote(str(run.cfg.filename))
    again = f"work_dirs/{shlex.quote(run.folder.resolve().name)}_again"
    return [f"python tools/train.py {config} --work-dir {again}", *known]


def _add_speed(section: Section, benchmark: dict) -> None:
    """The benchmark's tables, of one batch size each."""
    try:
        rows = [BenchmarkRow(**row) for row in benchmark["rows"]]
        batches = list(dict.fromkeys(row.batch for row in rows))
        for batch in batches:
            text = to_markdown([row for row in rows if row.batch == batch])
            for table in text.split("\n\n"):
                section.speed.append(_cells(table))
        metadata, settings = benchmark["machine"], benchmark["settings"]
        size = " × ".join(map(str, settings["size"]))
        device = metadata["gpu"] if settings["device"] == "cuda" else metadata["cpu"]
        section.measured_on = (
            f"{size} pixels, batch {', '.join(map(str, batches))}, {device}, "
            f"{metadata['threads']} threads, torch {metadata['torch']}"
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        section.speed = []
        section.run.notes.append(f"The benchmark's file cannot be read ({error!r}).")


def _cells(markdown: str) -> list[list[str]]:
    """Rows of cells of a table in Markdown, its head first."""
    lines = [line for line in markdown.splitlines() if line and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def _name_apart(runs: Sequence[Run]) -> None:
    """Runs of one name get their folders' names in front."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = "/".join(run.folder.resolve().parts[-2:])
    seen: dict[str, int] = {}
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        if seen[run.name] > 1:
            run.name = f"{run.name} ({seen[run.name]})"

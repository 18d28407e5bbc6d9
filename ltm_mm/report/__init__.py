"""One HTML page about one or several runs: what ``tools/report.py`` writes."""

from .page import write_report
from .work_dir import Run, read_run

__all__ = ["Run", "read_run", "write_report"]

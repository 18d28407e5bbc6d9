"""Run every Swin config of the installed mmdet and mmseg with merging; print a table."""

import argparse
import sys

import ltm_mm  # noqa: F401  (before mmdet and mmseg)
from ltm_mm.analysis.coverage import cover, to_markdown
from ltm_mm.engine.errors import clean_errors
from ltm_mm.engine.swap import parse_keep


def main() -> int:
    """Exit code 1 if a config that could be run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ltm", default="balanced", metavar="KEEP", help="preset, number or plan")
    parser.add_argument("--package", nargs="+", default=["mmdet", "mmseg"], help="whose configs")
    parser.add_argument("--only", default="", help="configs whose name contains this")
    args = parser.parse_args()
    with clean_errors():
        rows = cover(args.package, parse_keep(args.ltm), args.only)
    print(to_markdown(rows))
    return int(any(row.failed for row, _ in rows))


if __name__ == "__main__":
    sys.exit(main())

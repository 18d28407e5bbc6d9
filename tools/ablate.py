"""Run a study: variants x seeds through the ordinary trainer, then a table and a figure.

python tools/ablate.py studies/swin_maskrcnn.yaml
python tools/ablate.py STUDY.yaml --seeds 0        # run it again to go on; what is done is kept
python tools/ablate.py STUDY.yaml ANOTHER.yaml     # several, and one figure of them all
"""

import ltm_mm  # isort: skip  (first: it stands in for mmcv's compiled ops where they are absent)

import argparse
import sys

from ltm_mm.analysis.study import run_studies
from ltm_mm.engine import clean_errors


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Run variants x seeds of a study (ltm_mm {ltm_mm.__version__})"
    )
    add = parser.add_argument
    add(
        "study",
        nargs="+",
        help="YAML file with config, seeds, metrics and variants, as in studies/",
    )
    add(
        "--work-dir",
        metavar="DIR",
        help="runs and report [work_dirs/<study's name>]; of several studies, the folder that "
        "theirs are in",
    )
    add("--seeds", nargs="+", type=int, metavar="SEED", help="only these of the study's seeds")
    add("--only", nargs="+", metavar="VARIANT", help="only these of the study's variants")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 if a run failed."""
    args = parse_args()
    with clean_errors(debug=args.debug):
        try:
            failed = run_studies(args.study, args.work_dir, args.seeds, args.only)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

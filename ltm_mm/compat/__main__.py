"""Let every program of an environment find ltm_mm's fallback for mmcv's ops, or end that.

python -m ltm_mm.compat install
python -m ltm_mm.compat remove

``install`` writes a file of one line beside the installed packages, which Python runs at its start:
it registers an import hook, imports nothing, and takes microseconds. Our own tools, and programs
that import ltm_mm before mmdet and mmseg, need none of this.
"""

import argparse
import os
import site
import sysconfig
from pathlib import Path

NAME = "ltm_mm.pth"
# What a program runs that imports mmcv._ext, where neither a compiled one nor ltm_mm is found, is
# the error that it would have without us.
LINE = (
    'import sys; sys.meta_path.append(type("LTMFallback", (), {"find_spec": staticmethod('
    "lambda name, path=None, target=None: "
    '__import__("ltm_mm.compat", fromlist=["compat"]).find_fallback() '
    'if name == "mmcv._ext" and __import__("importlib.util").util.find_spec("ltm_mm") else None)}))'
    "\n"
)


def folders() -> list[Path]:
    """Where Python looks for such files: of the environment, and of the user where that counts."""
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(folder) for folder in (sysconfig.get_path("purelib"), *users)]


def install() -> str:
    """Write the file; returns a line that says where.

    Raises:
        SystemExit: if no folder can be written to.
    """
    for folder in folders():
        if os.access(folder, os.W_OK):
            (folder / NAME).write_text(LINE)
            return f"{folder / NAME}: every program finds mmcv's ops; remove ends it"
    raise SystemExit(f"error: {folders()[0]} cannot be written to")


def remove() -> str:
    """Remove the file, wherever it is; returns a line that says what was done."""
    files = [folder / NAME for folder in folders() if (folder / NAME).is_file()]
    for file in files:
        file.unlink()
    return f"removed {', '.join(map(str, files))}" if files else "there was nothing to remove"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ltm_mm.compat", description=__doc__)
    parser.add_argument("action", choices=["install", "remove"])
    print({"install": install, "remove": remove}[parser.parse_args().action]())

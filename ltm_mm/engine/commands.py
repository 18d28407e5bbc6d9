"""The commands that made a work dir."""

import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .. import __version__

FILE = "commands.jsonl"


class Command(NamedTuple):
    """A command as it was typed.

    Attributes:
        line: what to type, from the repository's root.
        time: when it began, local time.
        version: of ltm_mm.
    """

    line: str
    time: str
    version: str


def note_command(work_dir: str | Path, variables: Mapping[str, str] | None = None) -> None:
    """Append this process's command line to the work dir, if it is one of our tools.

    Of several ranks the first one writes. A tool called from Python leaves no line.

    Args:
        work_dir: is made where it is missing.
        variables: of the environment that the config has read: name -> value.
    """
    tool = Path(sys.argv[0])
    if int(os.environ.get("RANK", 0)) or tool.parent.name != "tools":
        return
    words = ["python", f"tools/{tool.name}", *sys.argv[1:]]
    ranks = os.environ.get("WORLD_SIZE", "1")
    if "--launcher" in words and words[words.index("--launcher") + 1] == "pytorch":
        at = words.index("--launcher")
        words = words[:at] + words[at + 2 :]  # dist_*.sh adds it
        # dist_test.sh CONFIG CHECKPOINT PROCESSES, dist_train.sh CONFIG PROCESSES
        end = 2 + (2 if tool.name == "test.py" else 1)
        words = ["bash", f"tools/dist_{tool.stem}.sh", *words[2:end], ranks, *words[end:]]
    time = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    with open(Path(work_dir, FILE), "a") as file:
        settings = [f"{name}={shlex.quote(value)} " for name, value in (variables or {}).items()]
        entry = Command("".join(settings) + shlex.join(words), time, __version__)
        file.write(json.dumps(entry._asdict()) + "\n")


def read_commands(work_dir: str | Path) -> list[Command]:
    """The commands that made a work dir, oldest first; damaged lines are left out."""
    file = Path(work_dir, FILE)
    commands = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            commands.append(Command(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return commands

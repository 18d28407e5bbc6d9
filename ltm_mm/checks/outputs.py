"""Refuse an output that cannot be written, before hours of work and not after."""

import os
from pathlib import Path

from ..errors import UserError


def check_folder(option: str, place: str | os.PathLike) -> None:
    """Refuse a folder that cannot be made or written to; nothing is made yet.

    Args:
        option: of the command line, for the message.
        place: the folder.

    Raises:
        UserError: names what is in the way.
    """
    path = Path(place).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {place} is a file: name a folder")
    while not path.exists():
        if path.is_symlink():
            raise UserError(f"{option} {place}: the link {path} leads to no folder")
        path = path.parent
    if not path.is_dir():
        raise UserError(f"{option} {place} cannot be made: {path} is a file; name a folder")
    if not os.access(path, os.W_OK):
        raise UserError(f"{option} {place} cannot be written: {path} is not yours to write to")


def check_file(option: str, place: str | os.PathLike, *inputs: str) -> None:
    """Refuse a file that cannot be made or written; nothing is made yet.

    Args:
        option: of the command line, for the message.
        place: the file.
        *inputs: files that are read, which it must not replace.

    Raises:
        UserError: names what is in the way.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        raise UserError(f"{option} {place} is a folder: name a file")
    if any(path.exists() and Path(file).exists() and path.samefile(file) for file in inputs):
        raise UserError(f"{option} {place} would replace a file that is read: give another name")
    check_folder(option, path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{option} {place} cannot be written: it is not yours to write to")

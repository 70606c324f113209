"""Record of native code compiled by this installation, which runs without ``trust``.

Nothing in a compiled file proves where it comes from. What is compiled
here is noted by its sha256 in a folder of the user's own, outside of every runs folder: nobody
who only hands over files can write there.
"""

import hashlib
import os
from pathlib import Path

from ssdistill.artifacts.files import weight_files
from ssdistill.files import STATE as STATE
from ssdistill.files import state_folder

_this_process: set[str] = set()


def remember(path: Path) -> None:
    """Record a file as compiled here.

    Where the folder cannot be written to, it is known in this process only.
    """
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    _this_process.add(sha256)
    try:
        folder = state_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / sha256).touch(mode=0o600)
    except (OSError, RuntimeError):
        return


def is_known(path: Path) -> bool:
    """Whether the file's content is one that was compiled here."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 in _this_process:
        return True
    try:
        note = state_folder() / "compiled" / sha256
        # Of a folder that others can write to, their notes do not count.
        return all(_is_own(part) for part in (note.parent, note))
    except (OSError, RuntimeError):
        return False


def trust_stages(root: Path) -> list[Path]:
    """Record all native code in the stages of a runs folder as compiled here.

    For runs of another machine, and of versions that took no notes.

    Returns:
        the files that were not known before.
    """
    files = sorted(root.glob("stages/*/s*/model/*.aoti.pt2"))
    unknown = [file for file in files if file.is_file() and not is_known(file)]
    for file in unknown:
        remember(file)
    return unknown


def is_known_artifact(folder: Path) -> bool:
    """Whether all native code in an artifact's folder was compiled here."""
    return all(file.is_file() and is_known(file) for file in weight_files(folder))


def _is_own(path: Path) -> bool:
    facts = path.lstat()
    owner = getattr(os, "getuid", lambda: facts.st_uid)()
    return facts.st_uid == owner and not facts.st_mode & 0o022

"""One-line explanations of errors that end a command, and reports of internal errors."""

import contextlib
import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ssdistill.errors import UserError, is_out_of_memory, shortened, system_reason
from ssdistill.files import disk_is_full

REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EACCES: "change its permissions, or choose another folder with --runs",
    errno.EPERM: "change its permissions, or choose another folder with --runs",
    errno.EROFS: "choose another folder with --runs",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "the symbolic links form a loop; remove one of them",
    errno.ENOTDIR: "expected a folder, found a file; move the file away",
    errno.EEXIST: "expected a folder, found a file; move the file away",
    errno.EISDIR: "expected a file, found a folder; move the folder away",
    errno.ENOENT: "check the path; another program may have removed the file",
}
NO_MEMORY = "lower batch_size, data.image_size or the sizes of the networks"
PACKAGES = ("ssdistill", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "onnxruntime")


def require_current_folder() -> None:
    """Make sure that the folder the command was started in still exists.

    Without one no relative path means anything, and libraries end the process in their own way.

    Raises:
        UserError: it was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be found ({error.strerror}); it may have been deleted or "
            "replaced: cd to another one, or to the same path once more"
        ) from error


def explanation(error: BaseException) -> str | None:
    """Explain an error and its remedy on one line; None if it is an internal error."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"not enough memory ({_first_line(error)}); {NO_MEMORY}"
    if disk_is_full(error) and not isinstance(error, OSError):
        return f"no space left on the disk ({_first_line(error)}); {REMEDIES[errno.ENOSPC]}"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOMEM:
            return f"not enough memory ({error.strerror}); {NO_MEMORY}"
        place = f"{shortened(error.filename, 300)}: " if error.filename is not None else ""
        remedy = REMEDIES.get(error.errno, "check the disk and the network connection")
        reason = (
            "no space left on the disk" if error.errno == errno.ENOSPC else system_reason(error)
        )
        return f"{place}{reason}; {remedy}"
    return None


def save_report(error: BaseException, words: Sequence[str], folder: Path | None) -> Path | None:
    """Write a report of an internal error; None if it cannot be written.

    Args:
        words: the command line.
        folder: the runs folder, if there is one; the system's temporary folder otherwise.
    """
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    text = _report(error, words)
    for place in (lambda: folder, lambda: Path(tempfile.gettempdir())):
        # No folder for temporary files may be left, and asking for it is an error then.
        with contextlib.suppress(OSError):
            if (report := place()) is not None and report.is_dir():
                (report / name).write_text(text, encoding="utf-8", errors="backslashreplace")
                return report / name
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return shortened(lines[0], 150) if lines and lines[0].strip() else type(error).__name__


def _report(error: BaseException, words: Sequence[str]) -> str:
    versions = [f"python {platform.python_version()}, {platform.platform()}"]
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    parts = {
        "command": " ".join(["ssdistill", *words]),
        "folder": _current_folder(),
        "versions": "\n".join(versions),
        "config": _config(words),
        "traceback": "".join(traceback.format_exception(error)),
    }
    return "".join(f"== {title}\n{text.rstrip()}\n\n" for title, text in parts.items())


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:  # deleted under the process
        return str(error)


def _config(words: Sequence[str]) -> str:
    """The text of the config that the command line names."""
    # Not imported here: what failed may be an import of torch, and a second one crashes.
    reading = sys.modules.get("ssdistill.experiment.reading")
    if reading is None:
        return "none"
    for word in words[1:]:
        # Whatever goes wrong here must not hide what is being reported.
        with contextlib.suppress(Exception):
            file = reading.find_config(word)
            return f"# {file}\n{file.read_text(encoding='utf-8', errors='backslashreplace')}"
    return "none"


def is_another_process() -> bool:
    """Whether another of several processes will print the error, which it is given time for."""
    from ssdistill.chain.processes import SECONDS_FOR_THE_FIRST, several_processes

    launch = several_processes()
    if launch is None or launch.rank == 0:
        return False
    time.sleep(SECONDS_FOR_THE_FIRST)
    return True

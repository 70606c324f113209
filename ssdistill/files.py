"""Atomic writes, lock files, and errors that name the folder when a disk is full."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdistill.errors import UserError, shortened, shown

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a crash leaves the old content or the new, never a half.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    if isinstance(content, str):
        content = content.encode()
    with disk_errors(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes 0600; records are meant to be shared
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def user_path(path: str | Path) -> Path:
    """A path that a user wrote, with the home folder in place of a ``~`` at its beginning.

    Shells leave a ``~`` inside of ``key=~/x`` alone, and in a config nothing expands it.

    Raises:
        UserError: a home folder that is not known, such as that of ``~nobody-here``.
    """
    try:
        return Path(path).expanduser()
    except TypeError:
        written = shortened(repr(path))
        raise UserError(f"expected a path as text, got {written}") from None
    except RuntimeError:
        raise UserError(
            f"{shown(path)}: no home folder is known for ~; write the whole path"
        ) from None


def is_remote(place: object) -> bool:
    """Return whether a folder is written as an address, such as ``s3://bucket/runs``."""
    return "://" in str(place)


def folder_or_address(text: str) -> Path | str:
    """Return a path; the text itself if it is an address."""
    return text if is_remote(text) else Path(text)


STATE = "SSDISTILL_STATE"
"""Environment variable: another folder than ``~/.local/state/ssdistill``."""


def state_folder() -> Path:
    """Folder for this installation's persistent state.

    Raises:
        UserError: a relative path in the environment, which would be another folder wherever the
            command is started: also in one that came with the files.
    """
    if own := os.environ.get(STATE):
        folder = user_path(own)
        if not folder.is_absolute():
            raise UserError(f"{STATE}={shown(own)}: expected an absolute path")
        return folder
    root = Path(os.environ.get("XDG_STATE_HOME") or "")
    return (root if root.is_absolute() else Path("~/.local/state").expanduser()) / "ssdistill"


@contextmanager
def locked_by(path: Path, on_wait: Callable[[], object], patience: float = 0) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it if the process dies.

    Args:
        on_wait: called once where another process still holds it after ``patience`` seconds.

    Raises:
        UserError: something else stands in the place of the lock.
    """
    from filelock import FileLock, Timeout

    # A single look: whoever held the lock may remove the file at any moment.
    try:
        usable = stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # nothing is there, or a link that leads nowhere
        usable = not os.path.islink(path)
    if not usable:
        raise UserError(f"{path}: expected a lock file; remove what is there: rm -r '{path}'")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_writable(path: Path, key: str) -> None:
    """Make the folder of ``path``, and make sure that a file can be written there.

    Raises:
        UserError: it cannot; ``key``, the option that names the path, is in the message.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{key} {path}: cannot be written ({reason}); name a place that can"
        ) from error


def drop_half_line(path: Path) -> None:
    """Remove an unfinished last line, which a killed process left."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete != len(content):
        os.truncate(path, complete)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk or a used-up quota is behind an error, whatever a library made of it.

    torch, say, complains of an unexpected position in its archive, and safetensors words the
    reason in an error of its own.
    """
    while error is not None:
        texts = (os.strerror(number) for number in FULL)
        if getattr(error, "errno", None) in FULL or any(text in str(error) for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a UserError that names ``folder``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                f"{folder}: no space left on the disk, or quota used up; free some, then run the "
                "same command again"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"{folder}: cannot be written to ({error.strerror}); choose another folder"
            ) from error
        raise

"""The folder ``FILE.partial``: what an interrupted command leaves, and goes on from."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError, shortened
from ssdistill.files import disk_errors, locked_by, write_atomically

FORMAT = 1
STATE, SKIPPED, LOCK = "state.json", "skipped.jsonl", "lock"
ROWS, INDICES, SIMILARITIES = "rows", "indices.npy", "similarities.npy"
NEAR, NAMES, WHOLE = "neighbors.npz", "names.txt", "whole"
CONTENT = (STATE, SKIPPED, ROWS, INDICES, SIMILARITIES, NEAR, NAMES, WHOLE)
"""All that may be in the folder; nothing else is ever removed from it."""


class Partial:
    """The state of one file that is being written.

    Attributes:
        folder: ``FILE.partial``.
        done: images of each split that were encoded.
        rows: rows that were written, fewer where images could not be decoded.
        shape: of one row; None before the first.
        neighbors: rows whose neighbors were written.
        finishing: whether finished files may stand beside FILE already.
    """

    def __init__(self, folder: Path, key: dict[str, Any]):
        self.folder: Path = folder
        self.key: dict[str, Any] = json.loads(json.dumps(key))
        self.differences: dict[str, tuple[Any, Any]] = {}
        self.done: dict[str, int] = {}
        self.rows, self.neighbors = 0, 0
        self.shape: tuple[int, ...] | None = None
        self.finishing = False

    def save(self) -> None:
        """Write the state; rows must be on the disk."""
        state = {
            "format": FORMAT,
            "key": self.key,
            "done": self.done,
            "rows": self.rows,
            "shape": self.shape,
            "neighbors": self.neighbors,
            "finishing": self.finishing,
        }
        write_atomically(self.folder / STATE, json.dumps(state, indent=1) + "\n")

    def skip(self, split: str, row: int, position: int, reason: str) -> None:
        """Note an image that could not be decoded, before the state is saved."""
        line = json.dumps([split, row, position, reason])
        with open(self.folder / SKIPPED, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def skipped(self) -> dict[str, dict[int, str]]:
        """Reason why each row of a split could not be decoded, by split.

        Those behind the last saved state are found again.
        """
        found: dict[str, dict[int, str]] = {}
        path = self.folder / SKIPPED
        if not path.exists():
            return found
        with _reading(path):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    break  # cut off by a kill, behind the last saved state
                split, row, position, reason = json.loads(line)
                if position < self.done.get(split, 0):
                    found.setdefault(split, {})[int(row)] = str(reason)
        return found

    def begin(self) -> None:
        """Drop what is there, and begin from the first row."""
        self.clear()
        self.done, self.rows, self.shape, self.neighbors = {}, 0, None, 0
        self.finishing = False
        self.save()

    def clear(self) -> None:
        """Remove all files that a command writes here."""
        for path in (*(self.folder / name for name in CONTENT), *self.folder.glob(f".{STATE}.*")):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, unless it holds something of another origin."""
        self.clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def load(self) -> bool:
        """Read the state if there is one; return whether it belongs to this command.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder / STATE
        with _reading(path):
            state = json.loads(path.read_bytes())
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}")
            found = dict(state["key"])
            self.done = {str(split): int(count) for split, count in state["done"].items()}
            self.rows, self.neighbors = int(state["rows"]), int(state["neighbors"])
            shape = state["shape"]
            self.shape = None if shape is None else tuple(int(size) for size in shape)
            self.finishing = state["finishing"] is True
            if min(self.rows, self.neighbors, *self.done.values(), *(self.shape or ())) < 0:
                raise ValueError("a negative number")
        self.differences = {
            name: (found.get(name), self.key.get(name))
            for name in sorted({*found, *self.key})
            if found.get(name) != self.key.get(name)
        }
        return not self.differences

    def refusal(self, file: Path) -> UserError:
        """Return why an interrupted command cannot be gone on with, and what to do."""
        name, (before, now) = next(iter(self.differences.items()))
        more = len(self.differences) - 1
        others = f" and {more} more differ" if more else ""
        return UserError(
            f"{file}: was begun with {name}={_shown(before)}, now it is {_shown(now)}{others}; run "
            f"the command it was begun with, or begin again with --force (delete {self.folder})"
        )


def _shown(value: Any) -> str:
    return shortened("unknown" if value is None else value, 24)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({shortened(error, 100)}); delete {path.parent} and run the same "
            "command again"
        ) from error


def partial_folder(file: Path) -> Path:
    """Return the folder of the state of ``file``."""
    return file.with_name(f"{file.name}.partial")


@contextmanager
def opened_partial(
    file: Path, key: dict[str, Any], outputs: list[Path], force: bool
) -> Iterator[Partial]:
    """Hold ``FILE.partial`` alone; its state is that of an interrupted command, or a new one.

    The folder is removed at the end, and stays after an error where it holds rows.

    Args:
        key: what the rows depend on; the value of ``model`` is None where it has no hash.
        outputs: files that will be written; none may exist, unless ``force``.
        force: replace these files, and drop the state of another command.

    Raises:
        UserError: a file exists, another process writes it, or the state is of another command.
    """
    partial = Partial(partial_folder(file), key)
    with disk_errors(file.parent):
        try:
            partial.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{partial.folder}: cannot be a folder, since a file stands in its place or above "
                "it; move that file away"
            ) from None

    def refuse() -> None:
        raise UserError(
            f"{file}: another process is writing it; wait for that one, or name another file"
        )

    lock = partial.folder / LOCK
    with locked_by(lock, on_wait=refuse):
        if not lock.exists():  # removed by the process that has just finished
            raise UserError(f"{file}: another process has just written it; run this one again")
        try:
            with disk_errors(file.parent):
                _resume(partial, file, outputs, force)
        except BaseException:
            if not (partial.folder / STATE).exists():
                partial.remove()
            raise
        try:
            yield partial
        except UserError:
            if not partial.rows:  # nothing is lost, and another command may follow
                partial.remove()
            raise
        partial.remove()


def _resume(partial: Partial, file: Path, outputs: list[Path], force: bool) -> None:
    begun = (partial.folder / STATE).exists()
    same = begun and partial.load()
    refuse_existing(file, outputs, force, finishing=bool(same and partial.finishing))
    if begun and partial.key["model"] is None and not force:
        raise UserError(
            f"{file}: cannot go on with a function, whose weights cannot be compared; begin again "
            f"with force (delete {partial.folder})"
        )
    if same and partial.key["model"] is not None:
        return
    if begun and not force:
        raise partial.refusal(file)
    partial.begin()


def refuse_existing(file: Path, outputs: list[Path], force: bool, finishing: bool = False) -> None:
    """Raise UserError if a file that is to be written exists.

    Args:
        force: files are replaced.
        finishing: whether those beside ``file`` may have been written by an interrupted command.
    """
    for output in outputs:
        if output.is_dir():
            raise UserError(f"{output}: is a folder; name another file")
        # Those beside the file are complete before it is.
        if os.path.lexists(output) and not force and (output == file or not finishing):
            raise UserError(
                f"{output}: already exists; name another file, or add --force to replace it"
            )

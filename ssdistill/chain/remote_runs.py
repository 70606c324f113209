"""A runs folder in an object store: stages are fetched before they are read, and put when done.

Every machine works in a folder of its own. A stage's ``run.json`` is written last, there and here,
so that one whose transfer was cut short is never taken for a finished one.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssdistill.chain.recording import locked
from ssdistill.chain.stages import Stage
from ssdistill.errors import UserError, one_line, shown
from ssdistill.files import disk_errors, user_path
from ssdistill.record.run_record import RUN_FILE

WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"}
"""File systems without folders, some of which would make a bucket instead."""
CACHE = "SSDISTILL_RUNS_CACHE"
"""Variable: where the folders lie that stand for remote ones, instead of ``~/.cache``."""


class RemoteRuns:
    """A remote runs folder.

    Args:
        url: of any file system that fsspec knows.

    Attributes:
        folder: the local folder that stands for it.

    Raises:
        UserError: it cannot be written to, or a package for its file system is missing.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        cache = os.environ.get(CACHE)
        root = user_path(cache) if cache else _cache_folder()
        self.folder = root / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        with self._errors():
            try:
                import fsspec
            except ImportError:
                raise UserError(
                    f"--runs {url}: requires fsspec: pip install 'ssdistill[remote]'"
                ) from None
            self._system, self._path = fsspec.core.url_to_fs(self.url)

    def check(self) -> None:
        """Write and remove a file there.

        Raises:
            UserError: that fails.
        """
        place = f"{self._path}/.access-{secrets.token_hex(8)}"
        with self._errors():
            self._make_folder_of(place)
            self._system.pipe_file(place, b"x")
            self._system.rm_file(place)

    def fetch(self, folder: Path) -> None:
        """Make a stage's folder what it is remotely, unless only the one here is finished."""
        with self._errors():
            record = self._read(f"{self._remote(folder)}/{RUN_FILE}")
        if record is None or self._is_here(folder, record):
            return
        with locked(folder), self._errors(), disk_errors(self.folder):
            if not self._is_here(folder, record):
                self._download(folder, record)

    def _is_here(self, folder: Path, record: bytes) -> bool:
        try:
            own = (folder / RUN_FILE).read_bytes()
        except OSError:
            return False
        return own == record or (_is_finished(own) and not _is_finished(record))

    def _download(self, folder: Path, record: bytes) -> None:
        remote, arriving = self._remote(folder), folder.with_name(f".{folder.name}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        for name in self._names(remote) - {RUN_FILE}:
            (arriving / name).parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(f"{remote}/{name}", str(arriving / name))
        (arriving / RUN_FILE).write_bytes(record)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(arriving, folder)

    def has(self, folder: Path) -> bool:
        """Return whether there is such a folder with the same record remotely."""
        with self._errors():
            return (
                self._read(f"{self._remote(folder)}/{RUN_FILE}") == (folder / RUN_FILE).read_bytes()
            )

    def forget(self, folder: Path) -> None:
        """Remove the remote record of a stage that is made anew."""
        with self._errors(), suppress(FileNotFoundError):
            self._system.rm_file(f"{self._remote(folder)}/{RUN_FILE}")

    def put(self, folder: Path) -> None:
        """Make the remote folder what it is here, its record last."""
        if not (folder / RUN_FILE).is_file():
            return
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        with self._errors():
            remote = self._remote(folder)
            before = self._names(remote)
            if RUN_FILE in before:
                self._system.rm_file(f"{remote}/{RUN_FILE}")
            for name in sorted(names - {RUN_FILE}):
                place = f"{remote}/{name}"
                self._make_folder_of(place)
                self._system.put_file(str(folder / name), place)
            for name in sorted(before - names):
                self._system.rm_file(f"{remote}/{name}")
            self._system.pipe_file(f"{remote}/{RUN_FILE}", (folder / RUN_FILE).read_bytes())

    @contextmanager
    def around(self, stage: Stage) -> Iterator[None]:
        """Within the block the stage and all it descends from are here; what it did is put after.

        Also after an interruption: another machine can resume it.
        """
        for one in (*_ancestors(stage), stage):
            self.fetch(one.folder(self.folder))
        try:
            yield
        finally:
            self.put(stage.folder(self.folder))

    def _make_folder_of(self, place: str) -> None:
        protocol = self._system.protocol
        if WITHOUT_FOLDERS.isdisjoint([protocol] if isinstance(protocol, str) else protocol):
            self._system.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _remote(self, folder: Path) -> str:
        return f"{self._path}/{folder.relative_to(self.folder).as_posix()}"

    def _read(self, path: str) -> bytes | None:
        self._system.invalidate_cache()  # of listings: others write there
        try:
            return self._system.cat_file(path)
        except FileNotFoundError:
            return None

    def _names(self, remote: str) -> set[str]:
        """Files below a folder, by their paths from it."""
        try:
            paths = self._system.find(remote)
        except FileNotFoundError:
            return set()
        start = len(self._system._strip_protocol(remote).rstrip("/")) + 1
        names = {path[start:] for path in paths}
        if outside := [n for n in names if n.startswith("/") or {"..", "\\"} & {*n.split("/"), *n}]:
            raise UserError(
                f"--runs {self.url}: {shown(remote)} holds {shown(outside[0])}; remove it"
            )
        return names

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of any kind, by file system
            raise UserError(
                f"--runs {self.url}: {one_line(error)}; check the address and its credentials"
            ) from error


def _is_finished(record: bytes) -> bool:
    try:
        return json.loads(record)["status"] == "finished"
    except (ValueError, LookupError, TypeError):
        return False


def _ancestors(stage: Stage) -> list[Stage]:
    found: dict[tuple[str, int], Stage] = {}

    def add(one: Stage) -> None:
        for parent in one.parents.values():
            if (parent.digest, parent.seed) not in found:
                found[parent.digest, parent.seed] = parent
                add(parent)

    add(stage)
    return list(found.values())


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (root if root.is_absolute() else Path("~/.cache").expanduser()) / "ssdistill" / "runs"

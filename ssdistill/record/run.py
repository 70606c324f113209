"""run.json and metrics.jsonl: the source of truth about one stage."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError
from ssdistill.files import disk_errors, drop_half_line, write_atomically
from ssdistill.record.metrics_file import METRICS_FILE, metrics_sha256, read_metrics
from ssdistill.record.provenance import provenance
from ssdistill.record.run_record import (
    RUN_FILE,
    RunRecord,
    Status,
    checksum_of,
    load_run,
)

__all__ = ["METRICS_FILE", "RUN_FILE", "Run", "RunRecord", "load_run", "numbers", "read_metrics"]


class Run:
    """The record of one stage being run; open it again in the same folder to resume.

    As a context manager it ends the record whatever happens: ``finished`` at the end of the
    block, ``interrupted`` after Ctrl-C or SystemExit, ``failed`` with the reason otherwise.

    Args:
        folder: created if need be.
        **facts: the fields of :class:`RunRecord` known at the start (``stage``, ``digest`` and
            ``seed`` at least).

    Attributes:
        record: what run.json says now.
        last_step: last logged step, or None.
        furthest_step: highest step this folder has ever held, also before a rewind.

    Raises:
        UserError: the folder holds another run, a record that cannot be read, or cannot be
            written to.
    """

    def __init__(self, folder: Path | str, **facts: Any):
        self.folder = Path(folder)
        self.record = RunRecord(**facts, provenance=provenance(), started=_now())
        with disk_errors(self.folder):
            _make_folder(self.folder)
            if (self.folder / RUN_FILE).exists():
                self.record = _resumed(self.record, load_run(self.folder), self.folder)
            lines = read_metrics(self.folder)
            drop_half_line(self.metrics_path)
        self.last_step = max((line["step"] for line in lines), default=None)
        self.furthest_step = self.last_step
        self._opened, self._wall_before = time.monotonic(), self.record.wall_seconds
        self._file = None
        self.save()

    @property
    def metrics_path(self) -> Path:
        return self.folder / METRICS_FILE

    def log(self, step: int, metrics: Mapping[str, Any], epoch: int | None = None) -> None:
        """Append one line. Non-finite values are stored as null, which JSON can hold.

        Raises:
            ValueError: ``step`` is not beyond the last one (resume with :meth:`rewind`).
        """
        if self.record.status != "running":
            raise ValueError(f"{self.folder.name}: the run is {self.record.status}; cannot log")
        if self.last_step is not None and step <= self.last_step:
            raise ValueError(f"step {step} after step {self.last_step}: rewind({step}) first")
        line: dict[str, Any] = {"step": int(step)}
        if epoch is not None:
            line["epoch"] = int(epoch)
        line |= numbers(metrics)
        with disk_errors(self.folder):
            if self._file is None:
                self._file = open(self.metrics_path, "a", encoding="utf-8")  # noqa: SIM115
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        self.last_step = int(step)
        self.furthest_step = max(self.furthest_step or 0, self.last_step)

    def rewind(self, step: int) -> None:
        """Forget every line of ``step`` and later: the next step to be taken is ``step``."""
        self._close_file()
        earlier = [line for line in read_metrics(self.folder) if line["step"] < step]
        text = "".join(json.dumps(line) + "\n" for line in earlier)
        write_atomically(self.metrics_path, text)
        self.last_step = max((line["step"] for line in earlier), default=None)

    def add_artifact(self, name: str, file: Path | str, sha256: str, **facts: Any) -> None:
        """Name a file or folder the run has made; ``file`` is stored relative to the run."""
        path = Path(file)
        relative = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        entry = {"file": relative.as_posix(), "sha256": sha256, **facts}
        self._change(artifacts={**self.record.artifacts, name: entry})

    def finish(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Close the record as finished, with its final numbers."""
        self._close_file()
        written = metrics_sha256(self.folder)
        self._end("finished", metrics=numbers(metrics or {}), metrics_sha256=written)

    def fail(self, reason: str) -> None:
        """Close the record as failed; ``reason`` is kept on one line."""
        self._end("failed", reason=" ".join(str(reason).split()))

    def save(self) -> None:
        """Write run.json with the time spent so far (also worth calling at each checkpoint)."""
        spent = self._wall_before + time.monotonic() - self._opened
        self.record = replace(self.record, wall_seconds=round(spent, 3), checksum="")
        # default=str: a config may hold a Path or an enum, which a record shows as text.
        content = json.loads(json.dumps(asdict(self.record), default=str))
        if self.record.status == "finished":
            content["checksum"] = checksum_of(content)
            self.record = replace(self.record, checksum=content["checksum"])
        write_atomically(self.folder / RUN_FILE, json.dumps(content, indent=1) + "\n")

    def _change(self, **facts: Any) -> None:
        self.record = replace(self.record, **facts)
        self.save()

    def _end(self, status: Status, **facts: Any) -> None:
        self._close_file()
        self._change(status=status, **facts)

    def _close_file(self) -> None:
        if self._file is not None:
            with disk_errors(self.folder):
                self._file.close()
            self._file = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if self.record.status != "running":
            return
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            self.fail(f"{type(error).__name__}: {error}")
        else:
            self._end("interrupted", reason=type(error).__name__)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Plain Python numbers from tensors, arrays of one element and numbers; non-finite -> None."""
    plain: dict[str, float | int | None] = {}
    for name, value in metrics.items():
        if value is not None and not isinstance(value, int):
            value = float(value)
            value = value if math.isfinite(value) else None
        plain[name] = int(value) if isinstance(value, bool) else value
    return plain


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        raise UserError(f"{file}: expected a folder, found a file; move the file away") from error


def _resumed(new: RunRecord, old: RunRecord, folder: Path) -> RunRecord:
    for key in ("stage", "digest", "seed"):
        if getattr(new, key) != getattr(old, key):
            raise UserError(
                f"{folder} holds a run with {key} '{getattr(old, key)}', "
                f"not '{getattr(new, key)}': use another folder"
            )
    return replace(
        new,
        started=old.started,
        wall_seconds=old.wall_seconds,
        resumed=old.resumed + 1,
        artifacts=old.artifacts,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

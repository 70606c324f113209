"""Damage one file of a runs folder, as crashes, full disks and people do."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

JUNK = (b"", b"\0" * 64, b"not what it was\n", b"{}", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe")


def damage(root: Path, rng: random.Random) -> tuple[str, str]:
    """Damage one file below ``stages``, the report or the caches; returns which, and how."""
    files = sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and "data" not in path.relative_to(root).parts[:1]
    )
    path = rng.choice(files)
    ways = dict(WAYS)
    if path.suffix != ".json":
        ways.pop("change a field")
    name = rng.choice(list(ways))
    ways[name](path, rng)
    return str(path.relative_to(root)), name


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 20))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _replace(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice(JUNK))


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def _pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _stage_is_a_file(path: Path, rng: random.Random) -> None:
    folder = path.parent
    shutil.rmtree(folder)
    folder.write_text("a file\n")


def _lock_is_a_folder(path: Path, rng: random.Random) -> None:
    lock = path.parent.with_name(f".{path.parent.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()


def _field(path: Path, rng: random.Random) -> None:
    content = json.loads(path.read_text())
    places = list(_places(content))
    if not places:
        return _replace(path, rng)
    parent, key = rng.choice(places)
    if rng.random() < 0.4 and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = rng.choice((None, -1, 10**12, "x", [], {}, True, 1.5, [[]], "../../x"))
    path.write_text(json.dumps(content))
    return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in list(items):
        found.append((value, key))
        if isinstance(item, dict | list):
            found += _places(item)
    return found


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncate": _truncate,
    "flip bits": _flip,
    "replace": _replace,
    "delete": _delete,
    "folder instead": _folder,
    "symlink to itself": _loop,
    "named pipe": _pipe,
    "folder is a file": _stage_is_a_file,
    "lock is a folder": _lock_is_a_folder,
    "change a field": _field,
}

"""metrics.jsonl: one line per logged step."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError

METRICS_FILE = "metrics.jsonl"


def metrics_sha256(folder: Path | str) -> str:
    """sha256, in hexadecimal, of metrics.jsonl; of nothing where there is none."""
    path = Path(folder) / METRICS_FILE
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """Every complete line of metrics.jsonl; an unfinished last line is ignored.

    Returns:
        ``{"step": …, "epoch": …, name: number or None}`` each.

    Raises:
        UserError: the file cannot be read, or a line in the middle is damaged.
    """
    path = Path(folder) / METRICS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            lines.append(_parsed(line))
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}, line {number}: damaged ({reason}); delete the line, or move the folder "
                f"{path.parent} away to rerun it"
            ) from error
    return lines


def _parsed(line: bytes) -> dict[str, Any]:
    content = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if "step" not in content:
        raise ValueError("no step")
    for name, value in content.items():
        whole = name in ("step", "epoch")
        types = (int,) if whole else (int, float, bool, type(None))
        if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name} is not a {'whole ' if whole else ''}number")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

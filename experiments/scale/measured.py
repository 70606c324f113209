"""What committed records say about the parts of a large training."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).resolve().parents[1]
WIDTH = 512
"""Width of the embeddings that ``experiments/teacher_cache/rates.py`` records, and assumed here."""
BANK_IMAGES = 50_000
"""Images for which ``experiments/benchmarks/losses.py`` builds the losses."""


@dataclass(frozen=True)
class Measured:
    """What committed records say.

    Attributes:
        cut: images per second and core: a JPEG file decoded and two views of 224 pixels cut.
        macs: forward multiply-accumulates of an image by network.
        parameters: of each network.
        trained_here: images per second of a training step with one view on the machine of the
            record, by network; encoded_here: of a forward pass.
        cores: of that machine.
        index_bytes, own_bytes: per image, on disk and in a process.
        opening, fingerprint: seconds by number of images.
        indexing: seconds per image of listing files and reading their headers, two cores.
        recorded: bytes of a recorded output per number of its width.
        bank: bytes of ``crd``'s memory banks per image.
    """

    cut: float
    macs: Mapping[str, float]
    parameters: Mapping[str, float]
    trained_here: Mapping[str, float]
    encoded_here: Mapping[str, float]
    cores: int
    index_bytes: float
    own_bytes: float
    opening: Mapping[int, float]
    fingerprint: Mapping[int, float]
    indexing: float
    recorded: float
    bank: float


def latest(experiment: str, root: Path = EXPERIMENTS) -> dict[str, dict[str, Any]]:
    """The last record of each benchmark of an experiment."""
    lines = (root / experiment / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["benchmark"]: record for record in map(json.loads, lines)}


def read_measured(root: Path = EXPERIMENTS) -> Measured:
    """Collect the rates from the records.

    Raises:
        SystemExit: a record is missing; it is named.
    """
    try:
        reach, own = latest("data_reach", root), latest("scale", root)
        views, scale, files = reach["views"], reach["scale"]["rows"], reach["files"]["rows"]
        networks = {row["network"]: row for row in own["networks"]["rows"]}
        cache = latest("teacher_cache", root)["rates"]["rows"][0]
        crd = next(r for r in latest("benchmarks", root)["losses"]["rows"] if r["loss"] == "crd")
    except (OSError, KeyError, StopIteration) as error:
        raise SystemExit(f"a record is missing ({error}); run the scripts of README.md") from error
    found = re.search(r"ssdistill \d+ \(per CPU second (\d+)\)", views["note"])
    assert found is not None
    first = next(row for row in files if row["start"] == "first")
    by_images = {int(row["images"].replace(",", "")): row for row in scale}
    largest = by_images[max(by_images)]
    return Measured(
        cut=float(found[1]),
        macs={name: 1e9 * row["GMACs"] for name, row in networks.items()},
        parameters={name: 1e6 * row["parameters, M"] for name, row in networks.items()},
        trained_here={name: row["training, images/s"] for name, row in networks.items()},
        encoded_here={name: row["forward, images/s"] for name, row in networks.items()},
        cores=own["networks"]["provenance"]["hardware"]["cores"],
        index_bytes=1e6 * largest["index on disk, MB"] / max(by_images),
        own_bytes=max(row["own memory, bytes/image"] for row in scale),
        opening={n: row["opening, s"] for n, row in by_images.items()},
        fingerprint={n: row["fingerprint, s"] for n, row in by_images.items()},
        indexing=(first["listing, s"] + first["index, s"]) / first["images"],
        recorded=cache["bytes per image and view"] / WIDTH,
        bank=1e6 * float(crd["state (MB)"]) / BANK_IMAGES,
    )

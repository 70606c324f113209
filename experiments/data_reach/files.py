"""Many small files in a folder: what listing, fingerprint and index take, at first and again.

    python experiments/data_reach/files.py [--count 200000] [--out records.jsonl]

The files are JPEGs of 32 pixels in a temporary folder, a thousand to a class. The second start
finds them unchanged and reads none of them; the third one verifies all.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ssdistill.data.image_index import ImageIndex, verified
from ssdistill.data.sources.folder import Folder

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish
from scale import memory

PER_CLASS = 1000


def write_files(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(256):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
        encoded.append(file.getvalue())
    for number in range(count):
        place = folder / f"class{number // PER_CLASS:04d}"
        if number % PER_CLASS == 0:
            place.mkdir()
        (place / f"{number:07d}.jpg").write_bytes(encoded[number % len(encoded)])


def start(folder: Path, index: Path, what: str) -> dict:
    """Do what a start of a run does before the first image is decoded."""
    before, _ = memory()
    began = time.perf_counter()
    raw = Folder(path=str(folder), test_fraction=0).split("train").encoded()
    listed = time.perf_counter()
    raw.identity()
    fingerprinted = time.perf_counter()
    if what == "verify":
        verified(raw, index)
    else:
        ImageIndex(raw, index)
    ended = time.perf_counter()
    return {
        "start": what,
        "images": len(raw),
        "listing, s": listed - began,
        "fingerprint, s": fingerprinted - listed,
        "index, s": ended - fingerprinted,
        "own memory, bytes/image": max(0, memory()[0] - before) / len(raw),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000, help="of files")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        write_files(folder, args.count)
        index = Path(scratch) / "index"
        rows = [start(folder, index, what) for what in ("first", "again", "verify")]
    note = f"JPEG files of 32 pixels, {PER_CLASS} in a folder, in the file system's cache"
    publish(args.out, "files", "Many files in folders", note=note, rows=rows)


if __name__ == "__main__":
    main()

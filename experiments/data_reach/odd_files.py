"""Read 650 odd files in both ways of holding images: what is read, what is refused, why.

    python experiments/data_reach/odd_files.py [--files odd_files.jsonl] [--out records.jsonl]

Each file is made anew (``odd_images.py``, ``odd_others.py``), and read in a process of its own,
which has a minute. A crash, a hang, pixels that are not those another reader has, a reason of more
than one line, or two ways of holding that disagree, is a fault; any ends the run with status 1.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from odd_images import (
    Odd,
    of_animations,
    of_damage,
    of_headers,
    of_jpegs,
    of_modes,
    of_orientations,
    of_pngs,
    of_profiles,
    of_sizes,
    put_irregular,
)
from odd_others import of_deep, of_names, of_others, of_plugins, of_tiffs

from ssdistill.data.bad_image import BadImage
from ssdistill.data.cutting import decode
from ssdistill.data.decode import square
from ssdistill.data.deep_pixels import full_range, render
from ssdistill.data.file_split import FileSplit
from ssdistill.data.image_index import DEEP, _entry
from ssdistill.data.names import NameWriter

SECONDS = 60
LOSSY = 6
"""Levels by which the two decoders of JPEGs may differ, in one pixel."""
LONGEST = 200


MAKERS = (
    *(of_modes, of_sizes, of_damage, of_orientations, of_profiles, of_jpegs, of_pngs),
    *(of_animations, of_tiffs, of_deep, of_headers, of_others, of_names, of_plugins),
)


def all_files(only: str | None) -> Iterator[Odd]:
    chosen = [make for make in MAKERS if only in (None, make.__name__.removeprefix("of_"))]
    return chain.from_iterable(make() for make in chosen)


def put(odd: Odd, folder: Path) -> bytes:
    """Write a file; return its name."""
    name = odd.name if isinstance(odd.name, bytes) else odd.name.encode()
    if odd.content is None:
        put_irregular(folder, name.decode())
    else:
        (folder / os.fsdecode(name)).write_bytes(odd.content)
    return name


def read(pipe: Connection, folder: Path, name: bytes) -> None:
    """Read one file as a store and as originals would; send what came of it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    writer = NameWriter()
    writer.add(os.fsdecode(name))
    split = FileSplit("odd files", [(folder, writer.names())], None, ())
    Path("/proc/self/clear_refs").write_text("5")  # begin to measure the peak anew
    before, began = memory("VmRSS"), time.perf_counter()
    stored, why_stored = attempt(lambda: shown_pixels(split.image(0)))
    if stored is not None:
        square(stored, 16)
    original, why_original = attempt(lambda: as_original(split))
    result: dict[str, Any] = {"seconds": time.perf_counter() - began}
    result |= {"peak_mb": max(0.0, memory("VmHWM") - before)}
    result |= {"stored": why_stored, "original": why_original, "notes": split.notes()}
    result["pixels"] = stored
    if stored is not None and original is not None:
        same = stored.shape == original.shape
        gap = np.abs(stored.astype(int) - original.astype(int)).max() if same else 256
        result["apart"] = int(gap)
    pipe.send(result)


def attempt(reader: Any) -> tuple[np.ndarray | None, str]:
    try:
        return reader(), ""
    except BadImage as error:
        return None, error.reason
    except BaseException as error:
        return None, f"CRASH {type(error).__name__}: {error}"


def as_original(split: FileSplit) -> np.ndarray:
    """Index the file, then decode it as a batch does."""
    entry = _entry(split, 0)
    if isinstance(entry, BadImage):
        raise entry
    pixels_CHW, _ = decode(split.read(0))
    size = (entry[1], entry[2] & ~int(DEEP))
    if size != tuple(pixels_CHW.shape[1:]):
        raise RuntimeError(f"indexed as {size}, decoded as {tuple(pixels_CHW.shape[1:])}")
    return pixels_CHW.permute(1, 2, 0).numpy()


def shown_pixels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else render(pixels, full_range(pixels.dtype))


def memory(field: str) -> float:
    """Megabytes, of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def judged(odd: Odd, result: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one file."""
    pixels = result.pop("pixels", None)
    name = odd.name if isinstance(odd.name, str) else os.fsdecode(odd.name)
    line = {"kind": odd.kind, "name": ascii(name)[1:-1], **result}
    line["read"] = not line["stored"]
    faults = [
        why for why in (line["stored"], line["original"]) if why.startswith(("CRASH", "HANG"))
    ]
    whys = (line["stored"], line["original"])
    faults += [f"reason: {why!r}" for why in whys if "\n" in why or len(why) > LONGEST]
    if bool(line["stored"]) != bool(line["original"]):
        faults.append("one way of holding reads it, the other does not")
    elif line.get("apart", 0) > LOSSY:
        faults.append(f"the two ways are up to {line['apart']} levels apart")
    if pixels is not None and odd.expected is not None:
        if pixels.shape != odd.expected.shape:
            faults.append(f"{pixels.shape} instead of {odd.expected.shape}")
        else:
            gap = np.abs(pixels.astype(float) - odd.expected).mean()
            line["right"] = bool(gap <= odd.tolerance)
            faults += [] if line["right"] else [f"pixels are {gap:.1f} levels off on average"]
    return line | {"faults": faults}


def read_apart(odd: Odd, folder: Path) -> dict[str, Any]:
    name = put(odd, folder)
    ours, theirs = get_context("fork").Pipe()
    work = get_context("fork").Process(target=read, args=(theirs, folder, name))
    work.start()
    theirs.close()
    result: dict[str, Any] = {"stored": "", "original": "", "seconds": float(SECONDS)}
    try:
        if ours.poll(SECONDS):
            result = ours.recv()
        else:
            work.kill()
            result |= {"stored": "HANG", "original": "HANG"}
    except EOFError:
        result |= {"stored": "CRASH", "original": "CRASH"}
    work.join()
    return judged(odd, result)


def table(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each kind."""
    rows = []
    for kind in dict.fromkeys(line["kind"] for line in lines):
        group = [line for line in lines if line["kind"] == kind]
        refused = [line["stored"] for line in group if line["stored"]]
        reasons = sorted(set(refused), key=lambda why: (-refused.count(why), why))
        known = [line["right"] for line in group if "right" in line]
        rows.append(
            {
                "kind": kind,
                "files": len(group),
                "read": len(group) - len(refused),
                "with the right pixels, of those known": f"{sum(known)} of {len(known)}",
                "refused": len(refused),
                "most often because": "; ".join(why[:70] for why in reasons[:2]) or "-",
                "slowest, s": max(line["seconds"] for line in group),
                "most memory, MB": max(line.get("peak_mb", 0.0) for line in group),
                "faults": sum(bool(line["faults"]) for line in group),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, help="write what came of each file, a JSON line each")
    parser.add_argument("--only", help="of these makers, such as pngs; by default all")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, odd in enumerate(all_files(args.only)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            lines.append(read_apart(odd, folder))
            if lines[-1]["faults"]:
                print(lines[-1]["kind"], lines[-1]["name"], lines[-1]["faults"], flush=True)
    if args.files:
        digits = {"seconds": 3, "peak_mb": 1}
        short = [
            {k: round(v, digits[k]) if k in digits else v for k, v in line.items()}
            for line in lines
        ]
        args.files.write_text("".join(json.dumps(line) + "\n" for line in short))
    num_faults = sum(bool(line["faults"]) for line in lines)
    note = (
        f"{len(lines)} files, {num_faults} with a fault; largest difference between the two ways "
    )
    note += f"of holding {max(line.get('apart', 0) for line in lines)} levels of 255"
    if args.only:
        print(note)
        sys.exit(bool(num_faults))
    sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from measuring import publish  # which imports the networks, too

    publish(args.out, "odd_files", "Odd files, by kind", note=note, rows=table(lines))
    sys.exit(bool(num_faults))


if __name__ == "__main__":
    main()

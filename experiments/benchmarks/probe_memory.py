"""Memory and run time of probes on many features.

    python experiments/benchmarks/probe_memory.py [--of knn:50000x512x10 …] [--out records.jsonl]

Features are drawn, kept in a file that is mapped into memory (as a subject keeps them where they
are large) or held in memory, and probed with the protocol's defaults in a process of its own. What
counts is the highest resident memory (VmHWM) beyond what the process had before: of mapped
features every page that was read and not taken back is part of it, of held ones none, as they were
there before.
"""

import argparse
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import publish

from ssdistill.evaluate.probes.knn_probe import knn_probe
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.measure.memory import CLEAR, RESET_PEAK, STATUS

TEST = 10_000
"""Rows that are tested on, beside those that are fitted."""
PIECE = 10_000
PROBES = {"linear": linear_probe, "knn": knn_probe}
HELD = 2**32
"""Bytes of features up to which they are also held in memory."""
DEFAULT = ("linear:200000x512x10", "linear:200000x512x100", "knn:1281167x2048x1000")


def resident(name: str) -> int:
    """``VmRSS``, or its peak ``VmHWM``, of this process in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def draw(path: Path, rows: int, width: int, classes: int) -> None:
    """Correlated, rectified features of overlapping classes, and their labels, as .npy files."""
    rng = np.random.default_rng(0)
    mix_DD = rng.standard_normal((width, width), np.float32)
    mix_DD *= np.logspace(0, -1.5, width, dtype=np.float32)[:, None]
    center_KD = 0.2 * rng.standard_normal((classes, width), np.float32)
    label_N = rng.integers(0, classes, rows)
    z_ND = np.lib.format.open_memmap(path / "z.npy", "w+", np.float32, (rows, width))
    for start in range(0, rows, PIECE):
        label_n = label_N[start : start + PIECE]
        z_nD = rng.standard_normal((len(label_n), width), np.float32) + center_KD[label_n]
        z_ND[start : start + PIECE] = np.maximum(z_nD @ mix_DD / 4 + 0.3, 0)
    z_ND.flush()
    np.save(path / "labels.npy", label_N)


def probe(protocol: str, path: Path, mapped: bool, threads: int) -> dict[str, float]:
    """Peak of resident memory beyond the start, seconds and what was found."""
    ask = PROBES[protocol]
    torch.set_num_threads(threads)
    z_ND = torch.from_numpy(np.load(path / "z.npy", mmap_mode="c" if mapped else None))
    label_N = np.load(path / "labels.npy")
    # Threads and libraries are no memory of the probe's.
    tiny_ND = torch.randn(400, 4)
    ask(tiny_ND, label_N[:400] % 2, tiny_ND, label_N[:400] % 2)
    baseline = resident("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    began_cpu = time.process_time()
    found = ask(z_ND[:-TEST], label_N[:-TEST], z_ND[-TEST:], label_N[-TEST:])
    cpu = time.process_time() - began_cpu
    peak = resident("VmHWM") - baseline
    return {"peak": peak, "seconds": found.seconds, "cpu": cpu, "top1": found.top1}


def measure(what: str, threads: int) -> list[dict[str, Any]]:
    """A row of the table for mapped and one for held features, each in a fresh process."""
    protocol, size = what.split(":")
    rows, width, classes = (int(part) for part in size.split("x"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), rows + TEST, width, classes)
        for mapped in (True, False)[: 1 + (rows * width * 4 <= HELD)]:
            with get_context("spawn").Pool(1) as pool:
                facts = pool.apply(probe, (protocol, Path(folder), mapped, threads))
            row = {"protocol": protocol, "rows": rows, "width": width, "classes": classes}
            row |= {"features (MiB)": f"{rows * width * 4 / 2**20:.0f}"}
            row |= {"kept": "mapped" if mapped else "held"}
            row |= {"peak (MiB)": f"{facts['peak'] / 2**20:.0f}"}
            row |= {"seconds": f"{facts['seconds']:.1f}", "CPU seconds": f"{facts['cpu']:.1f}"}
            print(row | facts, flush=True)
            found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", default=DEFAULT, metavar="PROTOCOL:ROWSxWIDTHxCLASSES")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    rows = [row for what in args.of for row in measure(what, args.threads)]
    note = (
        f"{TEST} further rows tested on, {args.threads} threads; mapped features count as far as "
        "they were read, held ones were there before"
    )
    publish(args.out, "probe_memory", "Memory of probes", rows=rows, note=note)


if __name__ == "__main__":
    main()

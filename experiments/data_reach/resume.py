"""Kills, other numbers of workers, other numbers of ranks: are the weights and batches the same?

    python experiments/data_reach/resume.py photographs/ [--kills 6] [--out records.jsonl]

A short pretraining and distillation on originals runs once without interruption. Then it is killed
(SIGKILL) again and again at random moments, and continued with another number of workers each time,
until it is done: the weights must be the same, to the last bit. Last, the slices of several ranks
are put together: they must be the batch of one.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from ssdistill.data.loader import Loader
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.recipes import RECIPES
from ssdistill.data.view_plan import ViewPlan
from ssdistill.experiment.reading import load_experiment

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

SIZE = 64
RUN = (
    f"data.image_size={SIZE}",
    "data.pixels=original",
    "pretrain.steps=40",
    "pretrain.batch_size=32",
    "distill.steps=40",
    "distill.batch_size=32",
    "control=null",
    "compress=[]",
    "evaluate=null",
    "checkpoint_seconds=0.5",
    "device.precision=fp32",
    "device.memory_format=contiguous",
    "device.threads=2",
)
RANKS = (2, 3, 4, 8)
BATCH, STEPS = 24, (0, 7, 30)


def start(folder: Path, root: Path, workers: int, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ssdistill", "run", "quickstart", "data.kind=folder"]
    command += [f"data.path={folder}", f"device.workers={workers}", f"--runs={root}", *RUN]
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def weights(root: Path) -> dict[str, str]:
    """sha256 of the weights of every network that was trained, by stage."""
    files = sorted((root / "stages").rglob("*.safetensors"))
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def newest_checkpoint(root: Path) -> float:
    """Time of the last checkpoint; 0 before the first one."""
    times = [0.0]
    for path in root.glob("stages/*/s0/checkpoint.pt"):
        with suppress(FileNotFoundError):  # the stage has just finished
            times.append(path.stat().st_mtime)
    return max(times)


def with_kills(folder: Path, root: Path, kills: int, log: Path) -> tuple[int, list[int]]:
    """Run until the end, killed up to ``kills`` times; return kills and the numbers of workers.

    A kill comes up to two seconds after a new checkpoint, so that each run gets further.
    """
    draws = random.Random(0)
    used: list[int] = []
    done = 0
    while True:
        before = newest_checkpoint(root)
        used.append(1 + len(used) % 4)
        process = start(folder, root, used[-1], log)
        while done < kills and process.poll() is None and newest_checkpoint(root) == before:
            time.sleep(0.05)
        if done < kills and process.poll() is None:
            time.sleep(draws.uniform(0, 2))
            process.kill()
            done += process.wait() < 0
        elif process.wait():
            raise SystemExit(log.read_text())
        if process.returncode == 0:
            return done, used


def rank_rows(folder: Path, root: Path) -> list[dict]:
    overrides = ["data.kind=folder", f"data.path={folder}", *RUN]
    data = load_experiment("quickstart", overrides)[0].data
    images = open_stores(open_source(data), data, SIZE, root / "data")["train"]
    plan = ViewPlan((RECIPES["simclr"], RECIPES["byol_b"]), 0, SIZE)
    rows = []
    for ranks in RANKS:
        loaders = [
            Loader(images, BATCH, 0, 100, world_size=n, rank=rank)
            for n, rank in [(1, 0), *((ranks, rank) for rank in range(ranks))]
        ]
        same = True
        for step in STEPS:
            whole, *parts = [plan.views(loader.batch(step, plan)) for loader in loaders]
            for view, view_BCHW in enumerate(whole):
                joined_BCHW = torch.cat([part[view] for part in parts])
                same = same and torch.equal(joined_BCHW, view_BCHW)
        rows.append({"what": f"slices of {ranks} ranks, two views of {BATCH} images", "same": same})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of images")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    folder = args.folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        roots = {name: Path(scratch) / name for name in ("whole", "killed")}
        began = time.perf_counter()
        if start(folder, roots["whole"], 2, log).wait():
            raise SystemExit(log.read_text())
        print(f"uninterrupted: {time.perf_counter() - began:.0f} s", flush=True)
        kills, workers = with_kills(folder, roots["killed"], args.kills, log)
        whole, killed = (weights(root) for root in roots.values())
        what = f"weights of {len(whole)} networks after {kills} kills, workers {workers}"
        rows = [{"what": what, "same": bool(whole) and whole == killed}]
        rows += rank_rows(folder, roots["whole"])
    note = "originals; pretraining and distillation of 40 steps each, a checkpoint every 0.5 s"
    publish(
        args.out,
        "resume",
        "Kills, workers and ranks",
        note=note,
        rows=[row | {"same": "yes" if row["same"] else "no"} for row in rows],
    )


if __name__ == "__main__":
    main()

"""The same images from every kind of source, through the whole chain: are the numbers the same?

    python experiments/data_reach/every_source.py photographs/ [--out records.jsonl]

``photographs/`` has ``train/<class>/`` and ``test/<class>/`` of JPEG files. They are put into a
container of each kind, in the same order; then a short run pretrains, distills, prunes, quantizes
and probes on each, holding the images as originals; arrays, and the folder once more, as stored
squares. All containers hold the same bytes, so the pixels that are evaluated must be the same, and
with originals the accuracy of every model, too, to the last digit. Seeds of stages on stored
squares depend on the names of the images, which containers do not share.
"""

import argparse
import csv
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ssdistill
from ssdistill.data.decode import read_image, square
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.splits import SPLITS
from ssdistill.experiment.reading import load_experiment

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

SIZE = 32
RUN = (
    f"data.image_size={SIZE}",
    "pretrain.steps=8",
    "pretrain.batch_size=64",
    "distill.steps=8",
    "distill.batch_size=64",
    "compress=[{kind: prune, ratio: 0.5, round_to: 4}, {kind: quantize}]",
    "evaluate.pixels=false",
    # What is fastest is measured otherwise, and must not differ from run to run.
    "device.precision=fp32",
    "device.memory_format=channels_last",
)


class Image(NamedTuple):
    """A file, its split and its class."""

    path: Path
    split: str
    label: int


TOP1 = "probe/linear/top1"
Made = dict[str, Any]
"""Settings of the source that a container was made for."""


def listed(folder: Path) -> tuple[list[Image], list[str]]:
    """All images, the training images first, sorted by class and name; and the classes."""
    classes = sorted(path.name for path in (folder / "train").iterdir())
    images = [
        Image(path, split, label)
        for split in ("train", "test")
        for label, name in enumerate(classes)
        for path in sorted((folder / split / name).iterdir())
    ]
    return images, classes


def of_split(images: list[Image], split: str) -> list[Image]:
    return [image for image in images if image.split == split]


def as_list(images: list[Image], to: Path) -> Made:
    with (to / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows((image.path, image.label, image.split) for image in images)
    return {"kind": "list", "path": to / "images.csv"}


def as_tar(images: list[Image], to: Path) -> Made:
    import tarfile

    for split in ("train", "test"):
        with tarfile.open(to / f"{split}-000000.tar", "w") as archive:
            for number, image in enumerate(of_split(images, split)):
                for suffix, content in (
                    ("jpg", image.path.read_bytes()),
                    ("cls", b"%d" % image.label),
                ):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return {"kind": "tar", "path": to}


def _columns(images: list[Image]) -> dict[str, list]:
    encoded = [{"bytes": image.path.read_bytes(), "path": image.path.name} for image in images]
    return {"image": encoded, "label": [image.label for image in images]}


def as_parquet(images: list[Image], to: Path) -> Made:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        table = pa.table(_columns(of_split(images, split)))
        pq.write_table(table, to / f"{split}-00000-of-00001.parquet", row_group_size=100)
    return {"kind": "parquet", "path": to}


def as_arrow(images: list[Image], to: Path) -> Made:
    import pyarrow as pa

    for split in ("train", "test"):
        table = pa.table(_columns(of_split(images, split)))
        with pa.ipc.new_file(to / f"{split}-00000-of-00001.arrow", table.schema) as file:
            file.write_table(table)
    return {"kind": "arrow", "path": to}


def as_hf(images: list[Image], to: Path) -> Made:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(_columns(of_split(images, split)), features=features)
            for split in ("train", "test")
        }
    ).save_to_disk(to)
    return {"kind": "hf", "path": to}


def as_hdf5(images: list[Image], to: Path) -> Made:
    import h5py

    with h5py.File(to / "images.h5", "w") as file:
        for split in ("train", "test"):
            chosen = of_split(images, split)
            pixels = file.create_dataset(
                f"{split}_images", len(chosen), dtype=h5py.vlen_dtype(np.uint8)
            )
            for row, image in enumerate(chosen):
                pixels[row] = np.frombuffer(image.path.read_bytes(), np.uint8)
            file[f"{split}_labels"] = [image.label for image in chosen]
    return {"kind": "hdf5", "path": to / "images.h5"}


def as_lmdb(images: list[Image], to: Path) -> Made:
    import lmdb

    made: Made = {"kind": "lmdb"}
    for split, prefix in (("train", ""), ("test", "test_")):
        chosen = of_split(images, split)
        size = 2 * sum(image.path.stat().st_size for image in chosen) + (64 << 20)
        with (
            lmdb.open(str(to / split), map_size=size) as database,
            database.begin(write=True) as writing,
        ):
            for row, image in enumerate(chosen):
                writing.put(b"%08d" % row, image.path.read_bytes())
        np.save(to / f"{split}.npy", [image.label for image in chosen])
        made |= {f"{prefix}path": to / split, f"{prefix}label_path": to / f"{split}.npy"}
    return made


def _squares(images: list[Image]) -> tuple[np.ndarray, np.ndarray]:
    pixels = [square(read_image(image.path), SIZE) for image in images]
    return np.stack(pixels), np.array([image.label for image in images])


def as_npz(images: list[Image], to: Path) -> Made:
    arrays = {}
    for split in ("train", "test"):
        names = (f"{split}_images", f"{split}_labels")
        arrays |= zip(names, _squares(of_split(images, split)), strict=True)
    np.savez(to / "images.npz", **arrays)
    return {"kind": "npz", "path": to / "images.npz"}


def as_npy(images: list[Image], to: Path) -> Made:
    made: Made = {"kind": "npy"}
    for split, prefix in (("train", ""), ("test", "test_")):
        for name, array in zip(
            ("path", "label_path"), _squares(of_split(images, split)), strict=True
        ):
            np.save(to / f"{split}_{name}.npy", array)
            made[prefix + name] = to / f"{split}_{name}.npy"
    return made


CONTAINERS: dict[str, Callable[[list[Image], Path], Made]] = {
    "list": as_list,
    "tar": as_tar,
    "parquet": as_parquet,
    "arrow": as_arrow,
    "hf": as_hf,
    "hdf5": as_hdf5,
    "lmdb": as_lmdb,
    "npz": as_npz,
    "npy": as_npy,
}
HELD = {"folder": ("stored", "original"), "npz": ("stored",), "npy": ("stored",)}


def pixels_sha256(settings: list[str], root: Path) -> str:
    """sha256 of all images as the evaluation of a finished run saw them."""
    data = load_experiment("quickstart", settings)[0].data
    sets = open_stores(open_source(data), data, SIZE, root / "data")
    return hashlib.sha256(b"".join(sets[split].images[:].tobytes() for split in SPLITS)).hexdigest()


def chain(settings: list[str], root: Path) -> tuple[dict[str, float], float]:
    """Run the chain; return top-1 accuracies by model, and seconds."""
    began = time.perf_counter()
    report = ssdistill.run("quickstart", *settings, root=root)
    accuracies = {
        record["model"]: record["metrics"][TOP1]
        for record in report.records
        if TOP1 in record["metrics"]
    }
    return accuracies, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/<class>/ and test/<class>/")
    parser.add_argument("--kinds", nargs="+", default=["folder", *CONTAINERS], help="of sources")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    folder = args.folder.resolve()
    images, classes = listed(folder)
    expected: dict[str, float] = {}
    same_pixels = ""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.kinds:
            place = Path(scratch) / kind
            place.mkdir()
            make = CONTAINERS.get(kind)
            made = make(images, place) if make else {"kind": "folder", "path": folder}
            for pixels in HELD.get(kind, ("original",)):
                settings = [f"data.{key}={value}" for key, value in made.items()]
                settings += [*RUN, f"data.pixels={pixels}"]
                root = Path(scratch) / f"runs-{kind}-{pixels}"
                numbers, seconds = chain(settings, root)
                sha256 = pixels_sha256(settings, root)
                same_pixels = same_pixels or sha256
                row = {"source": kind, "pixels": pixels, "models": len(numbers)}
                row["same pixels"] = "yes" if sha256 == same_pixels else "no"
                if pixels == "original":
                    expected = expected or numbers
                    row["same accuracies"] = "yes" if numbers == expected else "no"
                rows.append(row | {"seconds": seconds})
                print(rows[-1], flush=True)
    note = (
        f"{len(of_split(images, 'train'))} training and {len(of_split(images, 'test'))} test "
        f"images of {len(classes)} classes, {SIZE} pixels; 8 steps of each training: the numbers "
        "are there to be compared"
    )
    publish(
        args.out, "every_source", "The same images from every kind of source", note=note, rows=rows
    )


if __name__ == "__main__":
    main()

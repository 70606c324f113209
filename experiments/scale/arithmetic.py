"""Days, cores and bytes for 1.28 M and 100 M images on 1, 8 and 64 devices.

    python experiments/scale/arithmetic.py [--out experiments/scale/records.jsonl]

Reads the committed records of what was measured on CPUs and, for what was not measured here,
``ASSUMPTIONS``, each with its source. No training was run at this scale: the tables are
arithmetic.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import WIDTH, Measured, read_measured

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

IMAGES = (1_281_167, 100_000_000)
DEVICES = (1, 8, 64)
PER_NODE = 8
VIEWS = 2
BACKWARD = 2
"""The backward pass multiplies about twice as often as the forward pass."""
SINGLE = 4
"""Bytes of a number in float32."""
HOUR, DAY = 3600, 86400


@dataclass(frozen=True)
class Assumption:
    """A figure that was not measured here.

    Attributes:
        source: where it is published, or why it is chosen.
    """

    value: float
    unit: str
    source: str


A100 = "NVIDIA DeepLearningExamples, ResNet-50 v1.5 for PyTorch, table of DGX A100"
SHEET = "data sheet of NVIDIA DGX A100"
ASSUMPTIONS = {
    "ResNet-50 training, one device": Assumption(
        2470, "images/s", f"{A100}: 1 GPU, mixed precision"
    ),
    "ResNet-50 training, eight devices": Assumption(16621, "images/s", f"{A100}: 8 GPUs"),
    "CPU cores per device": Assumption(16, "cores", f"{SHEET}: 128 cores for 8 GPUs"),
    "memory of a device": Assumption(80, "GB", SHEET),
    "memory of a node": Assumption(2000, "GB", f"{SHEET}: 2 TB"),
    "between nodes": Assumption(25, "GB/s per device", f"{SHEET}: 8 links of 200 Gbit/s"),
    "storage of a node": Assumption(1.25, "GB/s", "our choice: a file server at 10 Gbit/s"),
    "disk for recorded outputs": Assumption(4000, "GB", "our choice: one NVMe drive"),
    "bytes of an image": Assumption(
        115_440, "bytes", "ILSVRC 2012: an archive of 147,897,477,120 bytes for 1,281,167 images"
    ),
    "images of a step on a device": Assumption(256, "images", "our choice: 16,384 on 64"),
}


@dataclass(frozen=True)
class Work:
    """A training, in passes of networks over one image.

    Attributes:
        trained: the network that learns; teacher: the one that only encodes, if any.
        reads: whether images are decoded (they are for views, recorded outputs or not).
    """

    name: str
    trained: str
    teacher: str | None = None

    def macs(self, measured: Measured) -> float:
        """Multiply-accumulates per image, all views."""
        once = (1 + BACKWARD) * measured.macs[self.trained]
        return VIEWS * (once + (measured.macs[self.teacher] if self.teacher else 0))

    def rate_here(self, measured: Measured) -> float:
        """Images per second of the networks on the machine of the record."""
        seconds = 1 / measured.trained_here[self.trained]
        if self.teacher:
            seconds += 1 / measured.encoded_here[self.teacher]
        return 1 / (VIEWS * seconds)


WORKS = (
    Work("pretrain ResNet-50", "resnet50"),
    Work("distill ResNet-50 to ResNet-18", "resnet18", "resnet50"),
    Work("the same, recorded outputs", "resnet18"),
)


def assumed(name: str) -> float:
    return ASSUMPTIONS[name].value


def network_rate(work: Work, devices: int, measured: Measured) -> float:
    """Images per second that the networks of all devices encode and train on.

    The published rate of ResNet-50 is converted by multiply-accumulates. Within a node, the
    published rate of eight devices holds; between nodes, averaging gradients (a ring, half of
    them sent and half received twice) is added to each step as if nothing overlapped it.
    """
    single, eight = (
        assumed(f"ResNet-50 training, {number} device{s}")
        for number, s in (("one", ""), ("eight", "s"))
    )
    macs_per_second = single * (1 + BACKWARD) * measured.macs["resnet50"]
    rate = macs_per_second / work.macs(measured)
    if devices >= PER_NODE:
        rate *= eight / (PER_NODE * single)
    seconds = assumed("images of a step on a device") / rate
    if devices > PER_NODE:
        sent = 2 * (devices - 1) / devices * SINGLE * measured.parameters[work.trained]
        seconds += sent / (1e9 * assumed("between nodes"))
    return devices * assumed("images of a step on a device") / seconds


def time_rows(measured: Measured) -> list[dict[str, Any]]:
    """What limits each training, and how long a pass over the images takes."""
    rows = []
    for images in IMAGES:
        for work in WORKS:
            for devices in DEVICES:
                nodes = -(-devices // PER_NODE)
                limits = {
                    "networks": network_rate(work, devices, measured),
                    "decoding": devices * assumed("CPU cores per device") * measured.cut,
                    "storage": 1e9
                    * nodes
                    * assumed("storage of a node")
                    / assumed("bytes of an image"),
                }
                limit = min(limits, key=limits.__getitem__)
                rows.append(
                    {
                        "images": f"{images:,}",
                        "training": work.name,
                        "devices": devices,
                        **{f"{name}, images/s": round(rate) for name, rate in limits.items()},
                        "limit": limit,
                        "cores that keep up": round(limits["networks"] / measured.cut),
                        "hours per pass": images / limits[limit] / HOUR,
                        "days for 100 passes": 100 * images / limits[limit] / DAY,
                    }
                )
    return rows


def here_rows(measured: Measured) -> list[dict[str, Any]]:
    """The same on the machine of the records, networks alone."""
    return [
        {
            "training": work.name,
            "networks, images/s": work.rate_here(measured),
            "decoding, images/s": measured.cores * measured.cut,
            **{
                f"days per pass, {images:,} images": images / work.rate_here(measured) / DAY
                for images in IMAGES
            },
        }
        for work in WORKS
    ]


def size_rows(measured: Measured) -> list[dict[str, Any]]:
    """What grows with the number of images, and whether it fits."""
    card, node = assumed("memory of a device"), assumed("memory of a node")
    disk = assumed("disk for recorded outputs")
    per_image = {
        "index of the files (disk, mapped)": (measured.index_bytes, disk),
        "own memory of every process": (measured.own_bytes, node / PER_NODE),
        "outputs recorded for one pass (disk)": (VIEWS * WIDTH * measured.recorded, disk),
        "the same for four passes": (4 * VIEWS * WIDTH * measured.recorded, disk),
        "embeddings of all images (losses with neighbors)": (SINGLE * WIDTH, node),
        "memory banks of crd (device)": (measured.bank, card),
        "images themselves (disk)": (assumed("bytes of an image"), disk),
    }
    rows = []
    for what, (size, limit) in per_image.items():
        row: dict[str, Any] = {"what": what, "bytes per image": round(size, 1)}
        for images in IMAGES:
            row[f"{images:,} images, GB"] = size * images / 1e9
        row["limit, GB"] = limit
        row["fits up to, M images"] = limit * 1e9 / size / 1e6
        rows.append(row)
    return rows


def start_rows(measured: Measured) -> list[dict[str, Any]]:
    """Seconds before the first step."""
    rows = []
    for images in IMAGES:
        rows.append(
            {
                "images": f"{images:,}",
                "first start: listing and headers, hours": images * measured.indexing / HOUR,
                "later starts: opening, s": measured.opening[images],
                "fingerprint, s": measured.fingerprint[images],
            }
        )
    return rows


def first_to_break(measured: Measured) -> list[dict[str, Any]]:
    """Limits in the order in which growing numbers of images or devices meet them."""
    decode = assumed("CPU cores per device") * measured.cut
    storage = 1e9 * assumed("storage of a node") / assumed("bytes of an image")
    rows = []
    for work in WORKS:
        one = network_rate(work, 1, measured)
        node = network_rate(work, PER_NODE, measured)
        rows.append(
            {
                "training": work.name,
                "cores per device that keep up": one / measured.cut,
                "decoding reaches of one device": f"{min(1.0, decode / one):.0%}",
                "storage reaches of a node": f"{min(1.0, storage / node):.0%}",
                "GB/s that a node reads": node * assumed("bytes of an image") / 1e9,
                "averaging, % of a step on 64 devices": 100
                * (1 - network_rate(work, 64, measured) / (8 * node)),
            }
        )
    return rows


def main() -> None:
    from measuring import publish

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the records, one JSON line each")
    args = parser.parse_args()
    measured = read_measured()
    rows = [
        {"figure": name, "value": a.value, "unit": a.unit, "source": a.source}
        for name, a in ASSUMPTIONS.items()
    ]
    tables = {
        "assumptions": ("Assumed, not measured", rows),
        "time": ("Time of a pass (arithmetic)", time_rows(measured)),
        "limits": ("What limits whom (arithmetic)", first_to_break(measured)),
        "sizes": ("What grows with the images (arithmetic)", size_rows(measured)),
        "start": ("Before the first step (arithmetic)", start_rows(measured)),
        "here": ("The same on the machine of the records (arithmetic)", here_rows(measured)),
    }
    note = (
        f"two views of 224 pixels; embeddings of width {WIDTH}; measured: "
        f"{measured.cut:.0f} images per second and core decoded and cut into two views"
    )
    for name, (title, found) in tables.items():
        publish(args.out, name, title, rows=found, note=note if name != "assumptions" else "")


if __name__ == "__main__":
    main()

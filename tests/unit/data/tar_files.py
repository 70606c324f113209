"""Small archives for tests."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, height: int = 20, width: int = 30) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar_bytes(members: dict[str, bytes] | list, format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of (name, content); or of a TarInfo, which has no content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for entry in members.items() if isinstance(members, dict) else members:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return file.getvalue()


def samples(first: int, count: int, classes: int = 3) -> dict[str, bytes]:
    members = {}
    for n in range(first, first + count):
        members[f"{n:04d}.jpg"] = jpeg(n)
        members[f"{n:04d}.cls"] = str(n % classes).encode()
    return members


def write_shards(folder: Path, sizes: dict[str, int]) -> Path:
    """Labeled archives of so many images, which are numbered through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, count in sizes.items():
        (folder / name).write_bytes(tar_bytes(samples(first, count)))
        first += count
    return folder

"""The formats of a file of embeddings, by its ending."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssdistill.errors import UserError, nearest
from ssdistill.label_free.embedding.csv_file import write_csv
from ssdistill.label_free.embedding.npz_file import write_npz
from ssdistill.label_free.embedding.parquet_file import write_parquet
from ssdistill.label_free.embedding.parts import Part
from ssdistill.label_free.embedding.row_file import Header, Rows, npy_header, safetensors_header

Facts = dict[str, str]
Writer = Callable[[Path, Rows, Sequence[Part], Facts], None]


@dataclass(frozen=True)
class Format:
    """How embeddings are written.

    Attributes:
        header: makes the header of the rows, from facts about them.
        write: writes the file from the rows; None where rows behind their header are the file, and
            names stand in a file beside it.
        patches: whether there may be several vectors for each image.
        bytes_per_number: of a copy of the rows, beside float32 or float16 themselves.
    """

    header: Callable[[Facts], Header]
    write: Writer | None = None
    patches: bool = True
    bytes_per_number: int = 0

    @property
    def has_names_file(self) -> bool:
        """Whether names are in ``FILE.names.txt``."""
        return self.write is None


FORMATS = {
    ".npy": Format(lambda facts: npy_header),
    ".npz": Format(lambda facts: npy_header, write_npz, bytes_per_number=4),
    ".parquet": Format(lambda facts: npy_header, write_parquet, bytes_per_number=4),
    ".csv": Format(lambda facts: npy_header, write_csv, patches=False, bytes_per_number=12),
    ".safetensors": Format(safetensors_header),
}


def format_of(file: Path, layer: str) -> Format:
    """Return the format that the ending of a file names.

    Raises:
        UserError: an unknown ending, a missing library, or a format that cannot hold the layer.
    """
    suffix = file.suffix.lower()
    known = ", ".join(FORMATS)
    if suffix not in FORMATS:
        ending = f"unknown ending '{suffix}'{nearest(suffix, FORMATS)}" if suffix else "no ending"
        raise UserError(f"{file}: {ending}; name a file that ends in one of {known}")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{file}: requires pyarrow: pip install 'ssdistill[arrow]', or name an .npy file"
        )
    found = FORMATS[suffix]
    if layer == "patch" and not found.patches:
        raise UserError(
            f"{file}: layer=patch has several vectors for each image, and a line of {suffix} has "
            "one; name an .npy file"
        )
    return found


def names_file(file: Path) -> Path:
    """Return the file of names beside an ``.npy`` or ``.safetensors`` file."""
    return file.with_name(f"{file.name}.names.txt")


def neighbors_file(file: Path) -> Path:
    """Return the file of nearest neighbors beside any file."""
    return file.with_name(f"{file.stem}.neighbors.npz")

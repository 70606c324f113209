"""Images in one ``.npz`` file; shapes and checksums are read without unpacking it."""

from functools import cached_property
from pathlib import Path

from ssdistill.data.array_file import MOST_NAMED, NpzFile
from ssdistill.data.labels import class_labels
from ssdistill.data.splits import SPLITS, ArraySplit, RawSplit, Source
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path


class Npz(Source):
    """Arrays in one ``.npz`` file, named as in MedMNIST.

    ``train_images`` and ``test_images`` (N, H, W) or (N, H, W, 3): uint8, fractions in [0, 1], or
    any other real numbers, see ``data.window``; optionally ``train_labels`` and ``test_labels``
    (N,) or (N, 1), and ``class_names``. Other arrays, such as MedMNIST's ``val_images``, are
    ignored. The size of a stored image is that of the train images, unless
    ``data.image_size`` says otherwise.

    Args:
        path: the file.
    """

    kind = "npz"

    def __init__(self, *, path: str):
        self.path = path

    @cached_property
    def _file(self) -> NpzFile:
        file = NpzFile(user_path(self.path))
        for name in SPLITS:
            file.check_images(f"{name}_images")
        types = [file.header(f"{name}_images")[1] for name in SPLITS]
        if len({dtype.newbyteorder("=") for dtype in types}) > 1:
            raise UserError(
                f"data.path={self.path}: 'train_images' are {types[0]}, but 'test_images' are "
                f"{types[1]}; save both with the same type"
            )
        return file

    @property
    def has_labels(self) -> bool:
        return {"train_labels", "test_labels"} <= set(self._file.keys)

    @property
    def default_image_size(self) -> int:
        return min(self._file.header("train_images")[0][1:3])

    @property
    def description(self) -> str:
        return f"{Path(self.path).name}, {'labeled' if self.has_labels else 'unlabeled'}"

    def warnings(self, labels: bool) -> tuple[str, ...]:
        """Name arrays of further images, which are ignored."""
        left_out = []
        for key in self._file.keys:
            if key.endswith("_images") and key.removesuffix("_images") not in SPLITS:
                shape, _ = self._file.header(key)
                left_out.append(f"{shown(key)} ({shape[0] if shape else 0} images)")
        if not left_out:
            return ()
        more = f" and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        named = ", ".join(left_out[:MOST_NAMED]) + more
        return (
            f"ignored: {named}; only train_images and test_images are read; to train on the "
            "others, "
            "append them to train_images",
        )

    def _split(self, name: str) -> RawSplit:
        file, images, labels = self._file, f"{name}_images", f"{name}_labels"
        title, identity = f"{self.path} ({name})", file.checksum(images)
        if labels not in file.keys:
            return ArraySplit(title, identity, lambda: file.load(images))
        count = file.header(images)[0][0]
        named = "class_names" in file.keys
        return ArraySplit(
            title,
            identity,
            lambda: file.load(images),
            lambda: class_labels(file.load(labels), f"data.path={self.path}: '{labels}'", count),
            (lambda: _names(file)) if named else None,
        )


def _names(file: NpzFile) -> list[str]:
    names = file.load("class_names")
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise UserError(
            f"data.path={file.path}: 'class_names' must be one string per class, they are "
            f"{names.dtype} of {' x '.join(map(str, names.shape)) or 'no shape'}; save a list of "
            "strings, or omit them"
        )
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]

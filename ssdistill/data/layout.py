"""Sort the images below a folder into splits and classes, by folder names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssdistill.data.file_split import FileSplit
from ssdistill.data.held_out import held_out_by_name
from ssdistill.data.listing import EXTENSIONS, Listing, list_images
from ssdistill.data.names import Names
from ssdistill.data.split_names import is_generic, name_warnings, split_folders, split_of
from ssdistill.errors import shown

UNLABELED = 1 << 20
"""A depth below all images, for unlabeled images."""
ONE_EACH = (
    "each of the {} images is in a separate folder, so folders are not used as classes and all "
    "images are unlabeled; put all images of a class into one folder"
)
STRAY = (
    "{} of {} images are outside class folders (first: {}), so all images are unlabeled and "
    "evaluation is skipped; move them into class folders or out of data.path"
)


@dataclass(frozen=True)
class Part:
    """One split's images below one folder.

    Attributes:
        names: relative to the folder.
        class_N: (N,) int32 positions in ``classes``; None if unlabeled.
        classes: names of the classes of these images, sorted.
    """

    names: Names
    class_N: np.ndarray | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Splits and classes of the images of one or several folders.

    Attributes:
        others: number of files that are not images, by suffix.
        skipped: number of ignored files.
        split_warnings: about folders that look like splits but are not used as splits.
        class_warnings: about folders that may not be classes.
    """

    train: FileSplit
    test: FileSplit
    others: Counter[str]
    skipped: int
    split_warnings: tuple[str, ...]
    class_warnings: tuple[str, ...]


@dataclass(frozen=True)
class RootLayout:
    """The :class:`Layout` of one folder."""

    folder: Path
    parts: tuple[Part, Part]
    others: Counter[str]
    skipped: int
    split_warnings: tuple[str, ...]
    class_warnings: tuple[str, ...]


def read_layout(
    folders: Sequence[Path],
    test_fraction: float | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffixes: frozenset[str] = EXTENSIONS,
) -> Layout:
    """Sort the images below some folders into splits and classes.

    A folder ``train`` next to ``test`` or ``val``, or synonyms of them
    (:mod:`ssdistill.data.split_names`), are used as splits, and all else is ignored. Of several
    test folders, the first that is labeled like ``train`` is used. They may be inside a wrapper
    folder such as ``data``. Otherwise test images are held out of all images, class by class.
    The class of an image is its topmost folder. A split is unlabeled if any image is outside a
    class folder, or if each image has a folder of its own.

    Several folders are sorted separately; then their splits are joined, and classes of equal
    name are merged. If the images of one folder are unlabeled, all are.

    Args:
        test_fraction: fraction to hold out; None means 0.2 with classes and 0.1 without.
        include, exclude, suffixes: of images, see :func:`ssdistill.data.listing.list_images`.

    Raises:
        UserError: several folders could hold the training images.
    """
    layouts = [read_root(folder, test_fraction, include, exclude, suffixes) for folder in folders]
    title = ", ".join(shown(folder) for folder in folders)
    splits = [
        _split(f"folder {title} ({name})", folders, [root.parts[k] for root in layouts])
        for k, name in enumerate(("train", "test"))
    ]
    all_classes = tuple(sorted({name for split in splits for name in split.all_classes}))
    for split in splits:
        _renumber(split, all_classes)
    train, test = splits
    return Layout(
        train,
        test,
        sum((root.others for root in layouts), Counter()),
        sum(root.skipped for root in layouts),
        tuple(line for root in layouts for line in root.split_warnings),
        (*_mixed(layouts), *(line for root in layouts for line in root.class_warnings)),
    )


def _split(title: str, folders: Sequence[Path], parts: Sequence[Part]) -> FileSplit:
    """Join the images of a split from all folders."""
    pairs = [(folder, p) for folder, p in zip(folders, parts, strict=True) if len(p.names)]
    pairs = pairs or [(folders[0], parts[0])]
    roots = [(folder, part.names) for folder, part in pairs]
    if any(part.class_N is None for _, part in pairs):
        return FileSplit(title, roots, None, ())
    classes = tuple(sorted({name for _, part in pairs for name in part.classes}))
    class_N = np.concatenate([_numbered(part.class_N, part.classes, classes) for _, part in pairs])
    return FileSplit(title, roots, class_N, classes)


def _renumber(split: FileSplit, all_classes: tuple[str, ...]) -> None:
    if split.class_N is not None:
        split.class_N = _numbered(split.class_N, split.all_classes, all_classes)
        split.all_classes = all_classes


def _numbered(
    class_N: np.ndarray | None, classes: tuple[str, ...], all_classes: tuple[str, ...]
) -> np.ndarray:
    position = {name: k for k, name in enumerate(all_classes)}
    number_K = np.array([position[name] for name in classes], dtype=np.int32)
    return number_K[class_N] if class_N is not None else np.zeros(0, dtype=np.int32)


def _mixed(layouts: Sequence[RootLayout]) -> tuple[str, ...]:
    """Warn if only some of several folders have classes."""
    flat = [root for root in layouts if len(root.parts[0].names) and root.parts[0].class_N is None]
    if not flat or len(flat) == len(layouts):
        return ()
    return (
        f"{len(flat)} of {len(layouts)} folders in data.path have no class folders (first: "
        f"{shown(flat[0].folder)}), so all images are unlabeled and evaluation is skipped; sort "
        "their images into class folders, or remove them from data.path",
    )


def read_root(
    folder: Path,
    test_fraction: float | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffixes: frozenset[str] = EXTENSIONS,
) -> RootLayout:
    """Sort the images below one folder; see :func:`read_layout`."""
    listing = list_images(folder, include, exclude, suffixes)
    names, skipped = listing.folders, listing.skipped
    count_F = np.bincount(listing.folder_N, minlength=len(names))
    total = len(listing.names)
    top = _below_wrapping(names, 0)
    first, others = split_folders({n.split("/")[top] for n in names if n.count("/") > top})
    own = bool(first and others)
    if first and others:
        train, test = _matching_splits(names, first, others, top)
        depths = [_below_wrapping(_select(names, part), top + 1) for part in (train, test)]
        out_N = None
        warnings = _stray_image_warning(listing, train, depths[0], test, depths[1])
        skipped += total - int(count_F[train].sum() + count_F[test].sum())
    else:
        depth = top
        if {name.split("/")[top] for name in names} == {first}:
            depth = _below_wrapping(names, top + 1)
        train = test = list(range(len(names)))
        classes_F, warnings = (
            _classes(names, depth),
            _stray_image_warning(listing, train, depth, [], depth),
        )
        if classes_F and total > 1 and len(set(classes_F)) == total:
            warnings, classes_F = (ONE_EACH.format(total),), None
        depths = [UNLABELED if classes_F is None else depth] * 2
        every = _part(listing, train, depths[0], None)
        out_N = held_out_by_name(listing.names, every.class_N, test_fraction)
    parts = (
        _part(listing, train, depths[0], None if out_N is None else ~out_N),
        _part(listing, test, depths[1], out_N),
    )
    classes = sorted({*parts[0].classes, *parts[1].classes}) if parts[0].class_N is not None else ()
    about_splits, about_classes = name_warnings(str(folder), names, classes, depths[0], not own)
    warnings = (*warnings, *about_classes)
    return RootLayout(folder, parts, listing.others, skipped, about_splits, warnings)


def _part(listing: Listing, folders: list[int], depth: int, chosen_N: np.ndarray | None) -> Part:
    """Return the chosen images of the given folders, with the classes at ``depth``."""
    included_F = np.zeros(len(listing.folders), dtype=bool)
    included_F[folders] = True
    row_N = included_F[listing.folder_N]
    names = listing.names
    if chosen_N is not None:
        row_N &= chosen_N
    if not row_N.all():
        names = names[row_N]
    names_F = _classes(_select(listing.folders, folders), depth)
    if names_F is None:
        return Part(names, None, ())
    folder_N = listing.folder_N[row_N]
    present = set(np.unique(folder_N).tolist())
    classes = tuple(sorted({c for at, c in zip(folders, names_F, strict=True) if at in present}))
    position = {name: k for k, name in enumerate(classes)}
    number_F = np.zeros(len(listing.folders), dtype=np.int32)
    number_F[folders] = [position.get(name, 0) for name in names_F]
    return Part(names, number_F[folder_N], classes)


def _select(names: list[str], rows: list[int]) -> list[str]:
    return [names[row] for row in rows]


def _below_wrapping(names: list[str], depth: int) -> int:
    """Return the depth below wrapper folders, which contain all images and are not classes.

    Examples are ``images``, ``data``, and ``train`` inside ``train``, as archives unpack.
    """
    while names and all(name.count("/") > depth for name in names):
        above, folder = ("", *names[0].split("/"))[depth : depth + 2]
        again = folder == above or (split_of(folder) and split_of(folder) == split_of(above))
        if not (again or is_generic(folder)) or len({n.split("/")[depth] for n in names}) > 1:
            break
        depth += 1
    return depth


def _matching_splits(
    names: list[str], first: str, others: list[str], top: int
) -> tuple[list[int], list[int]]:
    """Return the training folders, and those of the first test folder with matching labels."""

    def labeled(part: list[int]) -> bool:
        below = _select(names, part)
        return bool(_classes(below, _below_wrapping(below, top + 1)))

    train, *tests = (
        [k for k, name in enumerate(names) if name.split("/")[top] == part]
        for part in (first, *others)
    )
    return train, next((test for test in tests if labeled(train) and labeled(test)), tests[0])


def _stray_image_warning(
    listing: Listing, folders: list[int], depth: int, test: list[int], test_depth: int
) -> tuple[str, ...]:
    """Warn if a few images outside any class folder make the whole set unlabeled.

    Args:
        folders: of the training images, or of all images.
        test: of the test images, if they have separate folders.
    """
    names = listing.folders
    count_F = np.bincount(listing.folder_N, minlength=len(names))
    outside = [at for at in folders if names[at].count("/") <= depth]
    classes = {names[at].split("/")[depth] for at in folders if names[at].count("/") > depth}
    total = int(count_F[folders].sum())
    labeled = total - int(count_F[outside].sum())
    outside += [at for at in test if names[at].count("/") <= test_depth]
    if not outside or len(classes) < 2 or labeled <= total - labeled:
        return ()
    count, total = int(count_F[outside].sum()), total + int(count_F[test].sum())
    return (STRAY.format(count, total, shown(names[outside[0]])),)


def _classes(names: list[str], depth: int) -> list[str] | None:
    """Return the folder of each name at ``depth``; None if one has none there."""
    parts = [name.split("/") for name in names]
    return [p[depth] for p in parts] if all(len(p) > depth + 1 for p in parts) else None

"""Describe the images of a run before anything starts."""

from ssdistill.chain.workspace import Workspace
from ssdistill.data.displaying import channels_text
from ssdistill.data.originals import Originals
from ssdistill.data.recipes_of_images import replacement_notice
from ssdistill.data.undecoded import Undecoded, undecoded_of
from ssdistill.report.charts.axes import bytes_label
from ssdistill.settings import size_text
from ssdistill.train.progress import console

MOST_WINDOWS = 5
"""Channels whose windows are listed."""


def describe_data(workspace: Workspace) -> None:
    """Describe the images, their classes and window, and likely problems with them."""
    train, test, size = workspace.train, workspace.test, workspace.image_size
    lines = [
        f"{workspace.source.description}: {len(train)} training and {len(test)} test images, "
        f"{size_text(size)}{channels_text(train)}"
    ]
    if isinstance(train, Originals):
        lines.append(
            f"views are cut from the originals, decoded whenever they are read "
            f"(data.pixels={workspace.experiment.data.pixels})"
        )
    if workspace.classes:
        lines.append(workspace.classes)
    window = getattr(train, "window", None)
    if window:
        lines.append(
            f"more than 8 bits: black is {window[0]:g}, white {window[1]:g} "
            f"(data.window={workspace.experiment.data.window})"
        )
    elif windows := getattr(train, "windows", None):
        named = [f"{train.form.named(k)} {a:g} to {b:g}" for k, (a, b) in enumerate(windows)]
        more = ", …" if len(named) > MOST_WINDOWS else ""
        named = named[:MOST_WINDOWS]
        lines.append(f"more than 8 bits, as fractions of a range: {', '.join(named)}{more}")
    lines += not_decoded(undecoded_of((train, test)))
    if notice := replacement_notice(train):
        lines.append(notice)
    for line in lines:
        console.print(line, markup=False)
    for warning in workspace.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def not_decoded(undecoded: list[Undecoded]) -> list[str]:
    """One line about what a run would do with images that nobody has read; none without them."""
    if not undecoded:
        return []
    counts = " and ".join(
        f"{len(split):,} {'training' if split.split == 'train' else split.split} images"
        for split in undecoded
    )
    needed, root = bytes_label(sum(split.num_bytes for split in undecoded)), undecoded[0].root
    if undecoded[0].to_store:
        work = f"a run stores {counts} in {root} ({needed})"
    else:
        work = f"a run reads the originals of {counts} and keeps an index in {root} ({needed})"
    return [f"not decoded yet: {work}; hashes, and checks of pixels and labels, need that"]

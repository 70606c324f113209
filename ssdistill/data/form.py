"""Which channels, which part and which size of each image of a source are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssdistill.data.resizing import Resize
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width, size_text

Channels = Sequence[int] | Mapping[str, int]


@dataclass(frozen=True)
class Form:
    """Channels and shape of the images of a source.

    Attributes:
        channels: bands of a file, from 0, in the images' order; None for 8-bit RGB.
        names: of the channels, if the config has them.
        display: channels that reports show as red, green and blue; None for the default.
        resize: how images are brought to the stored size.
        view_size: size of the central part that networks see; None for the stored size.
    """

    channels: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    display: tuple[int, int, int] | None = None
    resize: Resize = "crop"
    view_size: Size | None = None

    @property
    def count(self) -> int:
        """Number of channels."""
        return 3 if self.channels is None else len(self.channels)

    @property
    def key(self) -> list[Any]:
        """Differences of stored pixels from cropped RGB; empty by default."""
        resize = [] if self.resize == "crop" else [["resize", self.resize]]
        return resize + ([] if self.channels is None else [["channels", list(self.channels)]])

    @property
    def setting(self) -> str:
        """The setting of the channels, for messages."""
        if self.channels is None:
            return "data.channels=null"
        if self.names is None:
            return f"data.channels={list(self.channels)}"
        pairs = zip(self.names, self.channels, strict=True)
        return "data.channels={" + ", ".join(f"{name}: {band}" for name, band in pairs) + "}"

    def named(self, position: int) -> str:
        """Return the title of a channel in messages: its band, and its name if it has one."""
        band = self.channels[position] if self.channels else position
        return f"channel {band}" + (f" ({self.names[position]})" if self.names else "")

    def seen(self, image_size: Size) -> Size:
        """Return the size of the images that networks see.

        Raises:
            UserError: it exceeds the stored size.
        """
        if self.view_size is None:
            return image_size
        pairs = zip(height_width(self.view_size), height_width(image_size), strict=True)
        if any(view > stored for view, stored in pairs):
            raise UserError(
                f"data.view_size={size_text(self.view_size)} exceeds data.image_size="
                f"{size_text(image_size)}; lower it, or raise data.image_size"
            )
        return self.view_size


EXAMPLES = (
    "must be band numbers, from 0, such as [3, 2, 1], or names with band numbers, such as "
    "{red: 3, nir: 7}"
)
RGB = Form()
"""The default: 8-bit RGB."""


def check_channels(channels: Any) -> Any:
    """Check ``data.channels``.

    Raises:
        ValueError: channels are invalid; the message tells what to do.
    """
    if channels is None:
        return channels
    if not isinstance(channels, (Mapping, list, tuple)):
        raise ValueError(EXAMPLES)
    bands = list(channels.values() if isinstance(channels, Mapping) else channels)
    if any(not isinstance(band, int) or isinstance(band, bool) or band < 0 for band in bands):
        raise ValueError(EXAMPLES)
    if not bands:
        raise ValueError("no channel is listed; list at least one, such as [0]")
    repeated = sorted({band for band in bands if bands.count(band) > 1})
    if repeated:
        raise ValueError(f"band {repeated[0]} is repeated; list each band once")
    if isinstance(channels, Mapping) and any(not str(name).strip() for name in channels):
        raise ValueError("a name is empty; name every channel")
    return channels

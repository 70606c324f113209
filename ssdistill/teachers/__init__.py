"""One file per kind of teacher; a new file is registered automatically (see `registry`).

The networks themselves belong in `models`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from ssdistill.models.backbones import Encoder
from ssdistill.models.spec import Channels
from ssdistill.settings import Size, as_size, height_width


@dataclass(frozen=True)
class ImageSpec:
    """Size and statistics of the images a teacher will receive.

    Attributes:
        image_size: side of the images, in pixels, or their height and width.
        mean, std: statistics of the training images, per channel of values in [0, 1].
    """

    image_size: Size
    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        # From a stage's config, pairs and statistics come as lists.
        object.__setattr__(self, "image_size", as_size(*height_width(self.image_size)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Teacher:
    """A pretrained encoder.

    A subclass sets ``kind`` and takes keyword-only settings. It opens no file before
    :meth:`identity` or :meth:`load` is called.
    """

    kind: ClassVar[str]

    def identity(self) -> dict[str, Any]:
        """Identify the weights beyond the settings, by the sha256 of the files read.

        Raises:
            UserError: a file that is not there; it is named.
        """
        return {}

    def trained_on(self) -> dict[str, Any] | None:
        """Bands and windows of the images it was trained on; None if the file does not say.

        See :func:`ssdistill.data.pixel_facts.pixel_facts`.
        """
        return None

    def load(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        """Load the encoder in eval mode, with its projector if there is one, and notices.

        It brings its own normalization and input size, and takes images of
        ``image_spec.image_size`` pixels in [0, 1].

        Raises:
            UserError: weights that are not there, or are not those of the network.
        """
        raise TypeError(f"{type(self).__name__} must define load")

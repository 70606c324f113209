"""Description of an encoder: in a config, and as stored in ``model.json``."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ssdistill.models.allowed_args import BuildingArgs
from ssdistill.settings import Settings, Size, height_width

Channels = tuple[float, ...]
"""One number for each channel of the images."""
RGB = 3
"""Channels that networks take unless they are told another number."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LONGEST_NAME, LARGEST_STEM = 128, 64
"""Letters of a network's name; stride and padding of a stem. What is saved can be opened again."""


Library = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
"""Where a network comes from: ``timm``, ``torchvision``, or the package of a plug-in."""


class EncoderSettings(Settings):
    """How to build an encoder.

    Args:
        name: any timm model name, or that of a network of a plug-in.
        args: further keyword arguments of ``timm.create_model``, e.g. ``{layers: [1, 1, 1, 1]}``.
        stem: ``native`` is timm's own; ``small`` is a 3x3 convolution without max-pooling
            (the CIFAR stem); ``auto`` takes ``small`` up to 64 pixels a side where the
            architecture has a known stem, ``native`` otherwise.
        stem_stride: stride of the small stem.
        stem_padding: padding of the small stem; 2 is what some published CIFAR ResNets have.
        input_size: side, in pixels, or ``[height, width]`` to which images are resized inside the
            encoder; null leaves them as they come.
        pretrained: start from timm's pretrained weights (downloads) and use their statistics. For
            other images than those of three channels timm adapts the first layer, and the data's
            statistics are used.
        weights: start from the folder of a finished stage or saved model, a checkpoint in one of
            the formats of ``teacher.kind=checkpoint``, a file of a state dict, or ``timm:NAME``;
            what fits by name and shape is loaded, with counts. Images are then normalized as they
            were for these weights, where that is known.
    """

    name: Annotated[str, Field(max_length=LONGEST_NAME)] = "resnet18"
    args: BuildingArgs = Field(default={})
    stem: Literal["auto", "native", "small"] = "auto"
    stem_stride: Annotated[int, Field(gt=0, le=LARGEST_STEM)] = 1
    stem_padding: Annotated[int, Field(ge=0, le=LARGEST_STEM)] = 1
    input_size: Size | None = None
    pretrained: bool = False
    weights: str | None = None

    @model_validator(mode="after")
    def _one_start(self) -> "EncoderSettings":
        if self.pretrained and self.weights:
            raise ValueError(
                "pretrained=true and weights both say where to start; remove one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_weights(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if k != "weights" or v is not None}


class EncoderSpec(Settings):
    """Everything needed to build the same encoder again, as stored in ``model.json``.

    ``image_size`` is the size of the images it is given, ``input_size`` the one they are
    resized to inside, where that is another; ``mean`` and ``std`` have one number a channel.
    """

    name: str
    args: dict[str, Any] = Field(default={})
    stem: Literal["native", "small"] = "native"
    stem_stride: int = 1
    stem_padding: int = 1
    image_size: Size
    input_size: Size | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    library: Library = "timm"

    @property
    def in_chans(self) -> int:
        """Channels of the images it takes."""
        return len(self.mean)

    @property
    def size(self) -> Size:
        """Size of the images that reach the network."""
        return self.input_size or self.image_size

    @property
    def ratio(self) -> float:
        """Height by width of these images."""
        height, width = height_width(self.size)
        return height / width

    @property
    def side(self) -> int:
        """Longer side of the images that reach the network."""
        return max(height_width(self.size))

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Initial weights and hashes of stages depend on the dump: a field that came later
        # must not change those of the encoders that do without it.
        later = {"stem_padding": 1, "input_size": None, "library": "timm"}
        return {k: v for k, v in dump(self).items() if k not in later or v != later[k]}

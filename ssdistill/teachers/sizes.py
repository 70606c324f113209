"""Input sizes of pretrained networks on images of another size."""

import math

from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.models.backbones import Encoder
from ssdistill.models.downloads import reason
from ssdistill.settings import Size, as_size, height_width, short_size

REFUSALS = (AssertionError, RuntimeError, ValueError, IndexError)
"""Exceptions of networks for an unsupported image size."""


GRID = 32
"""Sides of enlarged images that are no squares are multiples of it, which networks use whole."""


def size_inside(wanted: Size | None, native: Size, image_size: Size, fixed: bool) -> Size | None:
    """The ``input_size`` of a network that was trained on images of ``native`` pixels.

    Where none is ``wanted``, images smaller than it knows are enlarged, in their own aspect ratio
    and up to its number of pixels, and all are resized for a network of a fixed size.
    """
    if wanted is not None or fixed:
        return wanted or native
    height, width = height_width(image_size)
    scale = math.sqrt(math.prod(height_width(native)) / (height * width))
    if scale <= 1:
        return None
    if height == width:
        return native
    return as_size(*(max(1, round(side * scale / GRID)) * GRID for side in (height, width)))


def fit_size(encoder: Encoder, native: Size) -> None:
    """Check that ``encoder`` takes its images; if not, resize them to ``native`` pixels.

    Raises:
        UserError: it can do neither.
    """
    refused = _refusal(encoder)
    if refused and encoder.spec.input_size is None:
        encoder.spec = encoder.spec.model_copy(update={"input_size": native})
        refused = _refusal(encoder)
    if refused:
        size = short_size(encoder.spec.size)
        # At the size it was trained at it was tried, unless another one is set.
        remedy = f"it was trained at {short_size(native)} pixels: set teacher.input_size to that"
        if encoder.spec.size == native:
            remedy = "which is what it was trained at; choose another network"
        raise UserError(
            f"'{encoder.spec.name}' cannot encode images of {size} pixels ({reason(refused)}); "
            f"{remedy}"
        )


def size_notices(encoder: Encoder) -> list[str]:
    """Describe the cost of internal resizing; empty if nothing is resized."""
    spec = encoder.spec
    if spec.size == spec.image_size:
        return []
    given, inside = short_size(spec.image_size), short_size(spec.size)
    macs, plain = count_macs(encoder), _macs_as_they_come(encoder)
    text = f"{spec.name} resizes images from {given} to {inside} pixels internally: "
    unit, name = (1e9, "G") if macs >= 1e9 else (1e6, "M")
    text += f"{_rounded_text(macs / unit)} {name} MACs per image"
    if plain:
        text += f", {_rounded_text(macs / plain)} times those at {given} pixels"
    return [text]


def _rounded_text(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _macs_as_they_come(encoder: Encoder) -> int | None:
    spec = encoder.spec
    encoder.spec = spec.model_copy(update={"input_size": None})
    try:
        return count_macs(encoder)
    except REFUSALS:
        return None
    finally:
        encoder.spec = spec


def _refusal(encoder: Encoder) -> Exception | None:
    try:
        encoder.map_shapes()
    except REFUSALS as error:
        return error
    return None

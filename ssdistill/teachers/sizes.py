"""Input sizes of pretrained networks on images of another size."""

from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.models.backbones import Encoder
from ssdistill.models.downloads import reason

REFUSALS = (AssertionError, RuntimeError, ValueError, IndexError)
"""Exceptions of networks for an unsupported image size."""


def size_inside(wanted: int | None, native: int, image_size: int, fixed: bool) -> int | None:
    """The ``input_size`` of a network that was trained on images of ``native`` pixels.

    Where none is ``wanted``, images smaller than it knows are enlarged, and all are resized for
    a network of a fixed size.
    """
    if wanted is None and (fixed or image_size < native):
        return native
    return wanted


def fit_size(encoder: Encoder, native: int) -> None:
    """Check that ``encoder`` takes its images; if not, resize them to ``native`` pixels.

    Raises:
        UserError: it can do neither.
    """
    refused = _refusal(encoder)
    if refused and encoder.spec.input_size is None:
        encoder.spec = encoder.spec.model_copy(update={"input_size": native})
        refused = _refusal(encoder)
    if refused:
        raise UserError(
            f"'{encoder.spec.name}' cannot encode images of {encoder.spec.side} pixels "
            f"({reason(refused)}); it was trained at {native} pixels"
        )


def size_notices(encoder: Encoder) -> list[str]:
    """Describe the cost of internal resizing; empty if nothing is resized."""
    spec = encoder.spec
    if spec.side == spec.image_size:
        return []
    macs, plain = count_macs(encoder), _macs_as_they_come(encoder)
    text = f"{spec.name} resizes images from {spec.image_size} to {spec.side} pixels internally: "
    unit, name = (1e9, "G") if macs >= 1e9 else (1e6, "M")
    text += f"{_two_digits(macs / unit)} {name} MACs per image"
    if plain:
        text += f", {_two_digits(macs / plain)} times those at {spec.image_size} pixels"
    return [text]


def _two_digits(value: float) -> str:
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

"""Pretrained networks on images with other channels than those they were trained on."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.spec import RGB, Channels
from ssdistill.teachers import ImageSpec


def channel_notices(encoder: Encoder, trained: int = RGB) -> list[str]:
    """Say what published weights for ``trained`` channels became; empty for images of as many."""
    channels = encoder.spec.in_chans
    if channels == trained:
        return []
    how = "summed" if channels == 1 else "repeated and scaled"
    return [
        f"{encoder.spec.name}: pretrained weights of its first layer, for {_channels(trained)}, "
        f"are {how} for {channels}, and images are normalized by their own statistics"
    ]


def check_channels(found: int, image_spec: ImageSpec, whose: str, key: str) -> None:
    """Reject weights for another number of channels than the images have.

    Args:
        found: channels the weights were trained on.
        whose: the weights, for messages.
        key: of the setting that names them.

    Raises:
        UserError: both numbers are named.
    """
    given = len(image_spec.mean)
    if found != given:
        raise UserError(
            f"{key}: {whose} takes images of {_channels(found)}, but the data has "
            f"{_channels(given)}; choose {found} with data.channels, or another teacher"
        )


def check_numbers(values: Channels | None, image_spec: ImageSpec, key: str) -> None:
    """Reject statistics that are not one number for each channel of the images.

    Raises:
        UserError: both numbers are named.
    """
    channels = len(image_spec.mean)
    if values is not None and len(values) != channels:
        raise UserError(
            f"{key}: {len(values)} number{'s' * (len(values) != 1)}, but the images have "
            f"{_channels(channels)}; write one for each"
        )


def first_channels(encoder: Encoder, state: dict[str, Tensor]) -> int | None:
    """Channels of the images that ``state`` was trained on, by the encoder's first convolution.

    None where ``state`` has no such weight, or where it is not given the images as they are.
    """
    convs = ((n, m) for n, m in encoder.net.named_modules() if isinstance(m, nn.Conv2d))
    name, conv = next(convs, ("", None))
    weight = state.get(f"{name}.weight")
    if conv is None or weight is None or weight.ndim != 4:
        return None
    if conv.in_channels != encoder.spec.in_chans:
        return None
    return weight.shape[1] * conv.groups


def conv_channels(names: str | Sequence[str] | None, state: dict[str, Tensor]) -> int | None:
    """Channels of the input of the first convolution, by its weight in ``state``.

    Args:
        names: of the first convolutions, by timm.

    Returns:
        None where ``state`` has no such weight.
    """
    names = [names] if isinstance(names, str) else names or []
    weight = next((state[f"{name}.weight"] for name in names if f"{name}.weight" in state), None)
    return weight.shape[1] if isinstance(weight, Tensor) and weight.ndim == 4 else None


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"

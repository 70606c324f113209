"""Check that networks accept the image and view sizes, and find pixels they ignore."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError, one_line
from ssdistill.models.backbones import Encoder
from ssdistill.models.trial import LARGEST_SIDE, trial_of


@torch.no_grad()
def check_sizes(encoder: Encoder, key: str, sizes: Iterable[int], network: str) -> list[str]:
    """Check that a network encodes a black image of its own size and of each view's size.

    Args:
        key: of the settings whose ``views`` have these sizes.
        sizes: sides of views that are not of full size, pixels.
        network: key of the network's settings.

    Returns:
        notices of pixels that are cut off.

    Raises:
        UserError: a size that the network cannot take.
    """
    own_size, name = encoder.spec.image_size, encoder.spec.name
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with _missed_pixels(encoder) as missed:
            _encode(encoder, own_size, f"data.image_size={own_size}", _own_remedy(name, network))
        for size in sorted({*sizes} - {own_size}):
            remedy = f"set {network}.encoder.args.dynamic_img_size=true"
            _encode(encoder, size, f"{key}.views", remedy)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not missed:
        return []
    pixels, layer = max(missed)
    side = encoder.spec.side
    return [
        f"{network}.encoder: {name} ignores the last {pixels} of {side} pixels of each row "
        f"and column ({layer} leaves a remainder); an image of {side - pixels} pixels is used "
        "completely (data.image_size, or encoder.input_size to resize)"
    ]


def _own_remedy(name: str, network: str) -> str:
    return f"set another data.image_size, {network}.encoder.input_size or {network}.encoder.name"


def _encode(encoder: Encoder, size: int, key: str, remedy: str) -> None:
    if size > LARGEST_SIDE:
        raise UserError(
            f"{key}: {encoder.spec.name} cannot encode views of {size} pixels: choose a smaller "
            "size"
        )
    try:
        with trial_of(encoder, size):
            encoder(encoder.mean.new_zeros(1, encoder.mean.shape[1], size, size))
    except UserError:
        raise
    except Exception as error:  # a network raises anything on a size it was not made for
        raise UserError(
            f"{key}: {encoder.spec.name} cannot encode views of {size} pixels "
            f"({one_line(error)[:120]}); {remedy}"
        ) from error


@contextmanager
def _missed_pixels(encoder: Encoder) -> Iterator[list[tuple[int, str]]]:
    """Collects, for convolutions that cut an image into patches, what they leave over.

    Yields:
        (pixels of the image, name of the layer), after a forward pass.
    """
    missed: list[tuple[int, str]] = []
    side = encoder.spec.side

    def hook_of(name: str):
        def look(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            height = inputs[0].shape[-2]
            unseen_rows = unseen(module, height)
            if unseen_rows:
                missed.append((round(unseen_rows * side / height), name))

        return look

    convs = [(n, m) for n, m in encoder.net.named_modules() if isinstance(m, nn.Conv2d)]
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in convs]
    try:
        yield missed
    finally:
        for hook in hooks:
            hook.remove()


def unseen(conv: nn.Conv2d, side: int) -> int:
    """Rows at the end of an input of ``side`` rows that no output of a convolution reads.

    Convolutions that skip rows everywhere, such as 1x1 ones of stride 2, are meant to.
    """
    if isinstance(conv.padding, str):
        return 0
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    if conv.kernel_size[0] < conv.stride[0]:
        return 0
    return max(0, (side + 2 * conv.padding[0] - reach) % conv.stride[0] - conv.padding[0])

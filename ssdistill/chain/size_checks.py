"""Check that networks accept the image and view sizes, and find pixels they ignore."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError, one_line
from ssdistill.models.backbones import Encoder
from ssdistill.models.examples import black_image
from ssdistill.models.trial import LARGEST_SIDE, trial_of
from ssdistill.settings import Size, as_size, as_written, height_width, short_size


@torch.no_grad()
def check_sizes(encoder: Encoder, key: str, sizes: Iterable[Size], network: str) -> list[str]:
    """Check that a network encodes a black image of its own size and of each view's size.

    Args:
        key: of the settings whose ``views`` have these sizes.
        sizes: of views that are not of full size, pixels.
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
            setting = f"data.image_size={as_written(own_size)}"
            _encode(encoder, own_size, setting, _size_remedy(name, network))
        for size in sorted({*sizes} - {own_size}, key=height_width):
            remedy = f"set {network}.encoder.args.dynamic_img_size=true"
            _encode(encoder, size, f"{key}.views", remedy)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not missed:
        return []
    rows, columns, layer = max(missed)
    height, width = height_width(encoder.spec.size)
    what = f"the last {rows} of {height} rows and {columns} of {width} columns"
    if height == width:
        columns = rows
        what = f"the last {rows} of {height} pixels of each row and column"
    return [
        f"{network}.encoder: {name} ignores {what} ({layer} leaves a remainder); an image of "
        f"{short_size(as_size(height - rows, width - columns))} pixels is used completely "
        "(data.image_size, or encoder.input_size to resize)"
    ]


def _size_remedy(name: str, network: str) -> str:
    return f"set another data.image_size, {network}.encoder.input_size or {network}.encoder.name"


def _encode(encoder: Encoder, size: Size, key: str, remedy: str) -> None:
    pixels = short_size(size)
    if max(height_width(size)) > LARGEST_SIDE:
        raise UserError(
            f"{key}: {encoder.spec.name} cannot encode views of {pixels} pixels: choose a smaller "
            "size"
        )
    try:
        with trial_of(encoder, size):
            encoder(black_image(encoder, size))
    except UserError:
        raise
    except Exception as error:  # a network raises anything on a size it was not made for
        raise UserError(
            f"{key}: {encoder.spec.name} cannot encode views of {pixels} pixels "
            f"({one_line(error)[:120]}); {remedy}"
        ) from error


@contextmanager
def _missed_pixels(encoder: Encoder) -> Iterator[list[tuple[int, int, str]]]:
    """Collects, for convolutions that cut an image into patches, what they leave over.

    Yields:
        (rows and columns of the image, name of the layer), after a forward pass.
    """
    missed: list[tuple[int, int, str]] = []
    size = height_width(encoder.spec.size)

    def hook_of(name: str):
        def look(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            lost = [
                round(unseen(module, side, axis) * size[axis] / side)
                for axis, side in enumerate(inputs[0].shape[-2:])
            ]
            # Of a square both sides are said to lose as many.
            if lost[0] or (lost[1] and size[0] != size[1]):
                missed.append((lost[0], lost[1], name))

        return look

    convs = [(n, m) for n, m in encoder.net.named_modules() if isinstance(m, nn.Conv2d)]
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in convs]
    try:
        yield missed
    finally:
        for hook in hooks:
            hook.remove()


def unseen(conv: nn.Conv2d, side: int, axis: int = 0) -> int:
    """Rows at the end of an input of ``side`` rows that no output of a convolution reads.

    ``axis`` 1 is for columns. Convolutions that skip rows everywhere, such as 1x1 ones of stride
    2, are meant to.
    """
    if isinstance(conv.padding, str):
        return 0
    kernel, stride, padding = conv.kernel_size[axis], conv.stride[axis], conv.padding[axis]
    reach = conv.dilation[axis] * (kernel - 1) + 1
    if kernel < stride:
        return 0
    return max(0, (side + 2 * padding - reach) % stride - padding)

"""Trial runs of newly built networks, before anything depends on them.

First without memory (torch's meta device), to learn whether they fit, then on one black image.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ssdistill.errors import UserError, shortened
from ssdistill.machine import memory_bytes
from ssdistill.models.allowed_args import loading_refusal
from ssdistill.models.examples import black_image
from ssdistill.models.spec import RGB
from ssdistill.models.taps import looking
from ssdistill.settings import Size, height_width, short_size

if TYPE_CHECKING:
    from ssdistill.models.backbones import Encoder

log = logging.getLogger(__name__)
LARGEST_SIDE = 8192
"""Largest accepted image side, in pixels."""
COMPUTED_SIDE = 512
"""Largest image side that a trial computes; for larger images only shapes are traced."""
MOST_MODULES, LARGEST_NUMBER = 10_000, 1_000_000
"""Limits beyond those of any real network: number of layers; widths, depths and sizes."""
OWN_ARGUMENTS = {
    "num_classes": "encoders have no classifier",
    "features_only": "encoders return an embedding; losses select feature maps by name",
    "out_indices": "losses select feature maps by name",
}
"""Arguments of ``timm.create_model`` that build no encoder, and what to do instead."""
UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument ('\w+')")
"""What Python says of an argument that a network does not have."""
UNFOLLOWED = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
"""Exceptions of torch when shapes cannot be traced without values."""
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of libraries for an unsupported name, argument or size."""


class _TooLarge(Exception):
    """Stops the construction of a network that does not fit in memory."""


def check_arguments(args: Mapping[str, Any], key: str, channels: int = RGB) -> None:
    """Reject arguments that conflict with the definition of an encoder for so many channels.

    Raises:
        UserError: ``key`` is named, and what to do instead.
    """
    for name, remedy in OWN_ARGUMENTS.items():
        if name in args:
            raise UserError(f"{key}.{name} cannot be set ({remedy}); remove it")
    if reason := loading_refusal(args):
        raise UserError(f"{key}: {reason}")
    if (number := _too_large(args)) is not None:
        raise UserError(f"{key}: {number} is too large: use at most {LARGEST_NUMBER}")
    if args.get("in_chans", channels) != channels:
        raise UserError(
            f"{key}.in_chans={shortened(args['in_chans'])}: the images have {channels} "
            f"channel{'s' * (channels > 1)} (data.channels); remove it"
        )


def _too_large(value: Any) -> int | float | None:
    """First number in ``value`` so large that a constructor would never finish."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((n for n in map(_too_large, value) if n is not None), None)
    return value if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER else None


def check_fits(build: Callable[[], nn.Module], subject: str) -> None:
    """Reject a module larger than this machine's memory, without allocating it.

    Raises:
        UserError: ``subject`` is named.
    """
    memory = memory_bytes()
    try:
        with (
            _counting(memory),
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            _no_zero_warnings(),
        ):
            build()
    except _TooLarge as error:
        raise UserError(f"{subject} {error}; reduce its sizes") from None
    except Exception:
        pass


@contextmanager
def _no_zero_warnings() -> Iterator[None]:
    """Silence torch's warnings about widths of 0; they become errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element")
        yield


@contextmanager
def refusing(
    subject: str, what: type[Exception] | tuple[type[Exception], ...] = REFUSALS
) -> Iterator[None]:
    """Turn exceptions of a library into a one-line UserError about ``subject``."""
    try:
        with _no_zero_warnings():
            yield
    except UserError:
        raise
    except what as error:
        raise UserError(f"{subject}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """First line of an error's message, or the error's type where there is none."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "not enough memory"
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = shortened(lines[0], 200) if lines else ""
    if unknown := UNKNOWN_ARGUMENT.search(text):
        return f"no argument {unknown[1]}; remove it"
    bare = isinstance(error, LookupError | NotImplementedError) or not text
    return f"{type(error).__name__} {text}".strip() if bare else text


@contextmanager
def _counting(memory: int) -> Iterator[None]:
    """Stop construction once there are too many modules or too many bytes."""
    count, size = 0, 0

    def module_added(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise _TooLarge(f"has more than {MOST_MODULES} layers")

    def tensor_added(parent: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal size
        size += 0 if tensor is None else tensor.numel() * tensor.element_size()
        if size > memory:
            raise _TooLarge(f"needs more than this machine's {memory / 1e9:.0f} GB of memory")

    handles = [
        register_module_module_registration_hook(module_added),
        register_module_parameter_registration_hook(tensor_added),
        register_module_buffer_registration_hook(tensor_added),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def trial_of(encoder: "Encoder", size: Size) -> Iterator[None]:
    """Let ``encoder`` compute images of ``size`` pixels, or trace only shapes if they are large.

    If shapes cannot be traced without values, skip the trial with a warning.
    """
    size = encoder.spec.input_size or size
    if max(height_width(size)) <= COMPUTED_SIDE or encoder.mean.is_meta:
        yield
        return
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except UNFOLLOWED:
        log.warning(
            "skipped the trial of %s on %s-pixel images: shapes cannot be traced",
            encoder.spec.name,
            short_size(size),
        )


@torch.no_grad()
def check_encodes(encoder: "Encoder", size: Size, key: str = "") -> tuple[int, ...]:
    """Check that an encoder encodes one black image of ``size`` pixels.

    Returns:
        the shape of the embedding.

    Raises:
        UserError: it cannot, or gives no vector; ``key`` is named first.
    """
    spec, key = encoder.spec, f"{key}: " if key else ""
    name = spec.name if key else f"'{spec.name}'"
    if max(height_width(size)) > LARGEST_SIDE:
        raise UserError(
            f"{key}{name} cannot encode images of {short_size(size)} pixels: use at most "
            f"{LARGEST_SIDE}"
        )
    # Its tensors may be on the meta device, where nothing is computed and shapes are still told.
    taps, encoder.taps = encoder.taps, ()
    embedding = torch.empty(1, encoder.embed_dim, device="meta")
    try:
        with looking(encoder), trial_of(encoder, size):
            embedding = encoder(black_image(encoder, size)).embedding_BD
    except REFUSALS as error:
        raise UserError(
            f"{key}{name} cannot encode images of {short_size(size)} pixels "
            f"({reason_of(error)}){_size_remedy(encoder, size)}"
        ) from error
    finally:
        encoder.taps = taps
    shape = tuple(getattr(embedding, "shape", ()))
    if len(shape) != 2:
        raise UserError(
            f"{key}{name} returns {shape or type(embedding).__name__} for one image, expected "
            f"an embedding (1, {encoder.embed_dim}): choose another network or other encoder.args"
        )
    return shape


def _size_remedy(encoder: "Encoder", size: Size) -> str:
    """Suggest a remedy for an architecture that does not accept the image size."""
    config = timm.get_pretrained_cfg(encoder.spec.name) if encoder.spec.library == "timm" else None
    native = config.input_size[-1] if config else 224
    if encoder.spec.args and native == size:
        return "; check encoder.args"
    if hasattr(encoder.net, "patch_embed"):
        return f"; set encoder.args.dynamic_img_size=true or encoder.input_size={native}"
    if native == (encoder.spec.input_size or size):
        return "; choose another network"
    return f"; set encoder.input_size={native} or choose another network"


def refuse_no_width(name: str, net: nn.Module) -> None:
    """Reject a network with a convolution of zero channels: its output ignores the image.

    Raises:
        UserError: naming the layer.
    """
    for layer, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() == 0:
            raise UserError(
                f"encoder.args of '{name}': layer {layer} has no channels; increase the widths"
            )

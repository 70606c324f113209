"""Networks built from names and arguments are tried before anything depends on them.

First without memory (torch's meta device), to learn whether they fit, then on one black image.
"""

import logging
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
from ssdistill.models.taps import looking

if TYPE_CHECKING:
    from ssdistill.models.backbones import Encoder

log = logging.getLogger(__name__)
LARGEST_SIDE = 8192
"""Pixels a side."""
COMPUTED_SIDE = 512
"""Pixels a side of images that a trial computes; of larger ones only the shapes are followed."""
MOST_MODULES, LARGEST_NUMBER = 10_000, 1_000_000
"""More layers, or a larger width, depth or size, than any network has."""
OWN_ARGUMENTS = {
    "num_classes": "an encoder has no classifier",
    "features_only": "an encoder has an embedding; losses read maps by name",
    "out_indices": "losses read maps by name",
}
"""Arguments of ``timm.create_model`` that build no encoder, and what to do instead."""
UNFOLLOWED = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
"""What torch raises where shapes cannot be followed without numbers."""
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
"""What libraries raise for a name, an argument or a size that they cannot serve."""


class _TooLarge(Exception):
    """Ends the construction of a network that does not fit."""


def check_arguments(args: Mapping[str, Any], key: str) -> None:
    """Refuse arguments that decide what an encoder is.

    Raises:
        UserError: ``key`` is named, and what to do instead.
    """
    for name, remedy in OWN_ARGUMENTS.items():
        if name in args:
            raise UserError(f"{key}.{name} cannot be set ({remedy}); remove it")
    if reason := loading_refusal(args):
        raise UserError(f"{key}: {reason}")
    if (number := _too_large(args)) is not None:
        raise UserError(f"{key}: {number} is a larger number than any network takes")
    if args.get("in_chans", 3) != 3:
        raise UserError(
            f"{key}.in_chans={shortened(args['in_chans'])}: images have 3 channels; remove it"
        )


def _too_large(value: Any) -> int | float | None:
    """A number inside ``value`` that would keep a constructor busy for ever."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((n for n in map(_too_large, value) if n is not None), None)
    return value if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER else None


def check_fits(build: Callable[[], nn.Module], what: str) -> None:
    """Refuse a module that is larger than this machine's memory, without allocating it.

    Raises:
        UserError: ``what`` is named.
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
        raise UserError(f"{what} {error}; choose smaller sizes") from None
    except Exception:
        pass


@contextmanager
def _no_zero_warnings() -> Iterator[None]:
    """Silence torch about widths of 0, which are told as errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element")
        yield


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """What a library raises inside is told as a mistake in ``what``, on one line."""
    try:
        with _no_zero_warnings():
            yield
    except UserError:
        raise
    except REFUSALS as error:
        raise UserError(f"{what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The first line of what a library says, or the name of the error where it says nothing."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "not enough memory"
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = shortened(lines[0], 200) if lines else ""
    bare = isinstance(error, LookupError | NotImplementedError) or not text
    return f"{type(error).__name__} {text}".strip() if bare else text


@contextmanager
def _counting(memory: int) -> Iterator[None]:
    """Stop the construction of modules that are too many or too large."""
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
            raise _TooLarge(f"needs more than the {memory / 1e9:.0f} GB of memory this machine has")

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
def trial_of(encoder: "Encoder", side: int) -> Iterator[None]:
    """Inside, ``encoder`` computes images of ``side`` pixels, or follows their shapes alone.

    What cannot be followed without numbers is not tried, and said so.
    """
    side = encoder.spec.input_size or side
    if side <= COMPUTED_SIDE or encoder.mean.is_meta:
        yield
        return
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except UNFOLLOWED:
        log.warning("%s was not tried on images of %d pixels: too large", encoder.spec.name, side)


@torch.no_grad()
def check_encodes(encoder: "Encoder", side: int, key: str = "") -> tuple[int, ...]:
    """Let an encoder encode one black image of ``side`` pixels.

    Returns:
        the shape of what comes out as the embedding.

    Raises:
        UserError: it cannot, or gives no vector; ``key`` is named first.
    """
    spec, key = encoder.spec, f"{key}: " if key else ""
    name = spec.name if key else f"'{spec.name}'"
    if side > LARGEST_SIDE:
        raise UserError(f"{key}{name} cannot encode images of {side} pixels: choose a smaller size")
    # Its tensors may be on the meta device, where nothing is computed and shapes are still told.
    taps, encoder.taps = encoder.taps, ()
    embedding = torch.empty(1, encoder.embed_dim, device="meta")
    try:
        with looking(encoder), trial_of(encoder, side):
            embedding = encoder(encoder.mean.new_zeros(1, 3, side, side)).embedding_BD
    except REFUSALS as error:
        raise UserError(
            f"{key}{name} cannot encode images of {side} pixels "
            f"({reason_of(error)}){_other_size(encoder, side)}"
        ) from error
    finally:
        encoder.taps = taps
    shape = tuple(getattr(embedding, "shape", ()))
    if len(shape) != 2:
        raise UserError(
            f"{key}{name} gives {shape or type(embedding).__name__} for an image instead of "
            f"an embedding (1, {encoder.embed_dim}): choose another network or other encoder.args"
        )
    return shape


def _other_size(encoder: "Encoder", side: int) -> str:
    """What to do about an architecture that does not take the size of the images."""
    config = timm.get_pretrained_cfg(encoder.spec.name) if encoder.spec.library == "timm" else None
    native = config.input_size[-1] if config else 224
    if encoder.spec.args and native == side:
        return "; check encoder.args"
    if hasattr(encoder.net, "patch_embed"):
        return f"; set encoder.args.dynamic_img_size=true or encoder.input_size={native}"
    if native == (encoder.spec.input_size or side):
        return "; choose another network"
    return f"; set encoder.input_size={native} or choose another network"

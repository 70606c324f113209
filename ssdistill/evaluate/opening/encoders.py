"""Open an encoder: a saved model, an ONNX file, a timm name or a network."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ssdistill.artifacts.description import read_description
from ssdistill.artifacts.files import find_artifact, names_file, weight_files
from ssdistill.data.image_set import ImageSet
from ssdistill.data.pixel_facts import differences, pixel_facts
from ssdistill.errors import UserError, nearest, no_file, shortened
from ssdistill.evaluate.opening.arguments import check_image_size, check_statistics
from ssdistill.evaluate.opening.bare_onnx import BareOnnx
from ssdistill.evaluate.opening.named_encoders import KINDS, named_encoder
from ssdistill.files import user_path
from ssdistill.models.representation import Representation
from ssdistill.settings import Size, as_size, as_written, short_size
from ssdistill.teachers import ImageSpec

Channels = Sequence[float]


@dataclass(frozen=True, eq=False)
class Opened:
    """An opened encoder.

    Attributes:
        encoder: maps float BCHW images in [0, 1] to a Representation.
        source: what was opened, as it was written.
        image_size: side of the images it is given, in pixels, or height and width; None: as they
            come.
        notices: what must be known to read its numbers rightly.
        files: what a user of the model ships; empty for one that is in memory only.
        trained_on: bands and windows of its training images, as
            :func:`ssdistill.data.pixel_facts.pixel_facts`; None if unknown.
    """

    encoder: Callable[[Tensor], Representation]
    source: str
    image_size: Size | None
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    trained_on: Mapping[str, Any] | None = None

    def notices_for(self, images: Any) -> tuple[str, ...]:
        """Notices about the encoder and its input, if it is given these images.

        Args:
            images: an :class:`ssdistill.data.image_set.ImageSet`; arrays do not know their origin.
        """
        if self.trained_on is None or not isinstance(images, ImageSet):
            return self.notices
        return (*self.notices, *differences(self.trained_on, pixel_facts(images)))

    @property
    def bytes(self) -> int | None:
        """Of its files, else of its numbers in memory; None for a function."""
        if self.files:
            return sum(file.stat().st_size for file in self.files)
        if not isinstance(self.encoder, nn.Module):
            return None
        state = getattr(self.encoder, "net", self.encoder).state_dict()
        return sum(t.numel() * t.element_size() for t in state.values())

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if unknown."""
        from ssdistill.measure.parameters import count_parameters

        if not (isinstance(self.encoder, nn.Module) or hasattr(self.encoder, "path")):
            return None
        try:
            return count_parameters(self.encoder)
        except UserError:
            return None


class TensorEncoder(nn.Module):
    """Wrap a network that returns a tensor (B, D) as an encoder."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x_BCHW: Tensor) -> Representation:
        return as_representation(self.net(x_BCHW), type(self.net).__name__)


def model_of(what: Any) -> Any:
    """The model of what a run of a program has returned; anything else as it is."""
    # Its class is on the floor above.
    return what.model if hasattr(what, "model") and hasattr(what, "report") else what


def open_encoder(
    what: Any,
    image_spec: ImageSpec | None = None,
    *,
    image_size: Size | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    trust: bool = False,
) -> Opened:
    """Open an encoder in eval mode.

    Args:
        what: the folder of a saved model (or of the finished stage around it), of whatever
            runtime; an ``.onnx`` file from anywhere; ``timm:NAME`` or ``timm:NAME@FILE``, and
            likewise ``torchvision:`` and ``checkpoint:`` (see ``ssdistill list teachers``); or
            an encoder, a network or a function from images to a Representation or a tensor.
        image_spec: of the images it will see; a checkpoint from elsewhere may need to know them.
        image_size: side of the images it is to be given, or height and width; its own size by
            default.
        mean, std: statistics that an ``.onnx`` file or a checkpoint expects images to be
            normalized by.
        trust: open a saved model that is native code and was not compiled here.

    Raises:
        UserError: nothing to open there, something that is no encoder, or one for images of
            other channels.
    """
    what = model_of(what)
    opened = _opened(what, image_spec, check_image_size(image_size), mean, std, trust)
    takes = channels_of(opened.encoder)
    if image_spec is not None and takes not in (None, len(image_spec.mean)):
        raise UserError(
            f"{opened.source} takes images of {takes} channel{'s' * (takes != 1)}, but the data "
            f"has {len(image_spec.mean)}: pass images of the channels it was trained on"
        )
    return opened


def channels_of(encoder: Any) -> int | None:
    """Channels of the images that an encoder takes; None where that is not known."""
    if spec := getattr(encoder, "spec", None):
        return getattr(spec, "in_chans", None)
    shape = getattr(encoder, "input_shape", None)
    return shape[0] if shape and getattr(encoder, "takes_images", False) else None


def _opened(
    what: Any,
    image_spec: ImageSpec | None,
    image_size: Size | None,
    mean: Channels | None,
    std: Channels | None,
    trust: bool,
) -> Opened:
    check_statistics(mean, std)
    if not isinstance(what, str | Path):
        return _open_object(what, image_size)
    text = str(what)
    if named := named_encoder(text):
        encoder, size, notices = named.load(image_spec, image_size, mean, std)
        files = (user_path(named.file),) if named.file else ()
        return Opened(encoder, text, size, tuple(notices), files)
    if _is_bare(user_path(text)):
        return _open_onnx(user_path(text), image_size, mean, std)
    if mean is not None:
        raise UserError(
            f"{text} normalizes images itself: omit mean and std, which apply to bare .onnx files"
        )
    return _open_artifact(text, image_size, trust)


def own_size(what: Any) -> Size | None:
    """Size of the images an encoder was made for, found without loading its weights.

    Raises:
        UserError: nothing to open there.
    """
    what = model_of(what)
    if not isinstance(what, str | Path):
        return getattr(getattr(what, "spec", None), "image_size", None)
    text = str(what)
    if named := named_encoder(text):
        named.check()
        return named.native_size
    if _is_bare(user_path(text)):
        return BareOnnx(user_path(text)).size
    spec = read_description(_artifact(text)).spec
    return spec.image_size if spec else None


def takes_statistics(what: Any) -> bool:
    """Whether ``mean`` and ``std`` may be passed: the encoder does not store them."""
    if not isinstance(what, str | Path):
        return False
    named = named_encoder(str(what))
    return named.kind == "checkpoint" if named else _is_bare(user_path(what))


def as_representation(output: Any, name: str) -> Representation:
    """Convert the output of an encoder; a tensor (B, D) is its embedding.

    Raises:
        UserError: it is something else.
    """
    if isinstance(output, Representation):
        return output
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name} returns {shape}; an encoder returns embeddings (B, D)")
    return Representation(output)


def _is_bare(path: Path) -> bool:
    """Whether it is an ONNX file that no ``model.json`` beside it describes."""
    return path.suffix == ".onnx" and path.is_file() and not names_file(path.parent, path.name)


def _artifact(text: str) -> Path:
    path = user_path(text)
    if os.path.lexists(path):
        return find_artifact(path)
    import timm

    kind, colon, rest = text.partition(":")
    hint = nearest(kind, KINDS) if colon and rest else ""
    is_network = not colon and timm.is_model(text)
    remedy = f"for the network of timm write timm:{text}" if is_network else "check the path"
    raise UserError(no_file(text, remedy, hint))


def _open_artifact(text: str, image_size: Size | None, trust: bool) -> Opened:
    from ssdistill.artifacts.artifact import load
    from ssdistill.models.backbones import Encoder
    from ssdistill.teachers.sizes import fit_size, size_notices

    folder = _artifact(text)
    files, trained_on = tuple(weight_files(folder)), read_description(folder).trained_on(folder)
    # What it will see are views of this package.
    encoder = load(folder, trust=trust, check_inputs=False)
    own = encoder.spec.image_size if encoder.spec else None
    notices: list[str] = []
    if isinstance(encoder, Encoder):
        own = encoder.spec.image_size
        if image_size and image_size != own:
            encoder.spec = encoder.spec.model_copy(update={"image_size": image_size})
            fit_size(encoder, own)
            notices.append(
                f"was trained on images of {short_size(own)} pixels and gets "
                f"{short_size(image_size)}"
            )
            notices += size_notices(encoder)
        return Opened(encoder, text, image_size or own, tuple(notices), files, trained_on)
    size, notices = _fitting(encoder.input_shape, own, image_size)
    return Opened(encoder, text, size, tuple(notices), files, trained_on)


def _open_onnx(
    path: Path, image_size: Size | None, mean: Channels | None, std: Channels | None
) -> Opened:
    encoder = BareOnnx(path, mean, std)
    size, notices = _fitting(encoder.input_shape, encoder.size, image_size)
    if mean is None:
        takes = "images of 0 to 255" if encoder.input_dtype.kind == "u" else "images in [0, 1]"
        notices.append(
            f"assuming that its graph normalizes {takes} itself; if it does not, pass mean and std"
        )
    return Opened(encoder, str(path), size, tuple(notices), (path,))


def _fitting(
    input_shape: tuple[int | None, ...] | None,
    native_size: Size | None,
    requested_size: Size | None,
) -> tuple[Size | None, list[str]]:
    """Image size for an exported model, and notices about it."""
    sides = [side for side in (input_shape or ())[-2:] if side is not None]
    fixed = as_size(sides[0], sides[-1]) if sides else None
    if fixed is not None and requested_size not in (None, fixed):
        takes, requested = short_size(fixed), as_written(requested_size)
        return fixed, [f"takes images of {takes} pixels only; ignoring image_size={requested}"]
    return requested_size or native_size or fixed, []


def _open_object(what: Any, image_size: Size | None) -> Opened:
    if not callable(what) or isinstance(what, type):
        written = shortened(repr(what))
        remedy = "; pass an instance of it" if isinstance(what, type) else ""
        raise UserError(f"expected a path, a name or a function of images, got {written}{remedy}")
    size = image_size or own_size(what)
    name = type(what).__name__
    if hasattr(what, "embed_dim"):
        return Opened(cast("Any", what), name, size)
    if isinstance(what, nn.Module):
        return Opened(TensorEncoder(what), name, size)
    name = getattr(what, "__name__", name)
    return Opened(lambda x_BCHW: as_representation(what(x_BCHW), name), name, size)

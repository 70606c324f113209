"""Models on disk: one weights file that others can read, and ``model.json`` beside it."""

import copy
import hashlib
import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ssdistill.artifacts.build_limit import TooLarge, build_limit
from ssdistill.artifacts.description import (
    DESCRIPTION,
    REMEDY,
    TORCH_WEIGHTS,
    Description,
    StoredHead,
    read_description,
    spec_of,
)
from ssdistill.artifacts.files import (
    PROJECTOR_WEIGHTS,
    find_artifact,
    read_checked,
    write_artifact,
)
from ssdistill.artifacts.heads import pack_head, unpack_head
from ssdistill.artifacts.usage_notes import input_text, timm_facts
from ssdistill.artifacts.weights import pack_weights, unpack_weights
from ssdistill.errors import UserError, shortened
from ssdistill.models.backbones import Encoder, encoder_from_spec
from ssdistill.models.downloads import reason
from ssdistill.models.networks import is_of_unknown_package
from ssdistill.models.spec import EncoderSpec
from ssdistill.models.trial import check_encodes
from ssdistill.models.wrapped import Wrapped

if TYPE_CHECKING:
    from ssdistill.artifacts.runtimes import RuntimeModel

TRIED_SIDE = 256
"""Largest image side on which a network is tried when it is opened."""
LIBRARIES = ("torch", "timm", "safetensors", "onnx", "onnxruntime")


def save_encoder(
    encoder: "Encoder | RuntimeModel", folder: str | Path, lineage: dict[str, Any] | None = None
) -> str:
    """Write an encoder as a folder of a few files, each of them complete or absent.

    ``model.safetensors`` carries timm's own key names; where a compression step has found a
    shorter form for weights there is ``model.coded.safetensors`` instead, and for a runtime's
    model the runtime's own file; ``projector.safetensors`` is the head the encoder was
    pretrained with, where it has kept one. ``model.json`` says how the network was built and
    what compression did to it, the projector's layers, the sha256s and, where timm can open the
    file by itself, the arguments of ``timm.create_model``.

    Args:
        encoder: what to save.
        folder: made if absent; an artifact in it is replaced.
        lineage: where the weights come from (parents' sha256, hashes); JSON values.

    Returns:
        sha256 of the weights: of their file, or of the list of several files' sha256s, see
        :func:`ssdistill.artifacts.files.sha256_of`.

    Raises:
        UserError: the disk is full, or the projector has layers that no file can describe.
    """
    head, projector_facts = _describe_projector(getattr(encoder, "projector", None))
    facts: dict[str, Any] = {"embed_dim": encoder.embed_dim}
    if encoder.spec is not None:
        facts["input"] = input_text(encoder.spec)
        facts["spec"] = encoder.spec.model_dump(mode="json")
    if isinstance(encoder, nn.Module):
        files, more = pack_weights(encoder)
        facts |= more | timm_facts(encoder, more, next(iter(files)))
    else:
        facts["runtime"] = getattr(encoder, "runtime", "onnxruntime")
        files = _runtime_files(encoder, facts["runtime"])
        facts |= _package_of_runtime(facts["runtime"])
    facts |= {**projector_facts, "lineage": lineage or {}, "libraries": _versions()}
    return write_artifact(Path(folder), files, head, facts)


def save_weights(model: Wrapped, folder: str | Path, lineage: dict[str, Any] | None = None) -> str:
    """Write the weights of a module that is no encoder: :func:`load_weights` reads them.

    Args:
        model: what to save.
        folder: made if absent; an artifact in it is replaced.
        lineage: where the weights come from; JSON values.

    Returns:
        sha256 of the weights file.

    Raises:
        UserError: the disk is full, or a state dict with an entry that is no tensor.
    """
    files, facts = pack_weights(model)
    facts |= {"module": model.name, "embed_dim": model.embed_dim}
    facts |= {"lineage": lineage or {}, "libraries": _versions()}
    return write_artifact(Path(folder), files, None, facts)


def load_weights(model: Wrapped, folder: str | Path) -> Wrapped:
    """A copy of ``model`` with the weights and the structure in ``folder``, in eval mode.

    Args:
        model: the uncompressed module, wrapped; left as it is.
        folder: written by :func:`save_weights`.

    Raises:
        UserError: a missing, damaged or foreign file; the first key or shape at fault is named.
    """
    folder = find_artifact(folder)
    description = read_description(folder)
    _refuse_runtimes(description, folder)
    model = copy.deepcopy(model)
    unpack_weights(model, folder, description)
    return model.eval()


def _runtime_files(model: "RuntimeModel", kind: str) -> dict[str, bytes]:
    from ssdistill.settings.registry import RUNTIMES

    runtime = RUNTIMES[kind]
    names = getattr(runtime, "files", (runtime.file,))
    return {
        name: (model.path if name == runtime.file
               else model.path.with_suffix(Path(name).suffix)).read_bytes()
        for name in names
    }  # fmt: skip


def _package_of_runtime(kind: str) -> dict[str, str]:
    """The package that has to be there to open a file, where that is a plug-in."""
    from ssdistill.settings.registry import RUNTIMES

    plugin = RUNTIMES.plugin_of(kind)
    return {"runtime_package": plugin.package} if plugin else {}


def _describe_projector(projector: nn.Module | None) -> tuple[bytes | None, dict[str, Any]]:
    if projector is None:
        return None, {}
    content, layers = pack_head(projector)
    facts = {"weights": PROJECTOR_WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()}
    return content, {"projector": facts | {"layers": layers}}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def load_encoder(folder: str | Path) -> Encoder:
    """The PyTorch encoder in an artifact folder, compressed or not, in eval mode.

    Its ``projector`` is the head it was pretrained with, where the folder has kept one.

    Raises:
        UserError: a missing, damaged or foreign file; the first key or shape at fault is named.
    """
    folder = Path(folder)
    description = read_description(folder)
    _refuse_runtimes(description, folder)
    if description.module is not None:
        raise UserError(
            f"{folder} holds weights of {description.module}, which is not an encoder: "
            "open it with ssdistill.artifacts.artifact.load_weights"
        )
    spec = spec_of(description)
    if spec is None:
        raise UserError(f"{folder / DESCRIPTION} lacks the encoder's spec; {REMEDY}")
    path = folder / description.first
    size = path.stat().st_size if path.is_file() else 0
    with build_limit(size, f"the spec in {folder / DESCRIPTION}", REMEDY):
        encoder = _built(spec, folder)
    unpack_weights(encoder, folder, description)
    if spec.args and spec.side <= TRIED_SIDE:
        _check_encodes(encoder, folder)
    if description.projector is not None:
        encoder.projector = _read_projector(description.projector, folder, encoder)
    return encoder.eval()


def _built(spec: EncoderSpec, folder: Path) -> Encoder:
    try:
        return encoder_from_spec(spec)
    except (TooLarge, MemoryError):
        raise
    except UserError as error:
        if is_of_unknown_package(spec):
            raise UserError(f"the spec in {folder / DESCRIPTION}: {error}") from error
        raise UserError(
            f"the spec in {folder / DESCRIPTION} is invalid: {error}; {REMEDY}"
        ) from error
    except Exception as error:  # networks raise anything for sizes that they cannot have
        if "allocate" in str(error):
            raise
        raise UserError(
            f"the spec in {folder / DESCRIPTION} is invalid: '{spec.name}' cannot be built "
            f"with its args ({reason(error)}); {REMEDY}"
        ) from error


def _check_encodes(encoder: Encoder, folder: Path) -> None:
    """Check that a network can also be called with the arguments it was built with."""
    try:
        check_encodes(encoder, encoder.spec.image_size)
    except UserError as error:
        raise UserError(
            f"the spec in {folder / DESCRIPTION} is invalid: {error}; {REMEDY}"
        ) from error


def _refuse_runtimes(description: Description, folder: Path) -> None:
    if not description.for_torch:
        raise UserError(f"no {TORCH_WEIGHTS} in {folder}: use load() for {description.first}")
    if description.runtime is not None:
        raise UserError(
            f"the runtime in {folder / DESCRIPTION} is invalid: {description.first} is not a file "
            f"for {description.runtime}; {REMEDY}"
        )


def _read_projector(entry: StoredHead, folder: Path, encoder: Encoder) -> nn.Module:
    path = folder / PROJECTOR_WEIGHTS
    content = read_checked(path, entry.sha256)
    try:
        return unpack_head(content, entry.layers, encoder.embed_dim)
    except UserError as error:
        raise UserError(f"{path} does not match its {DESCRIPTION}: it {error}; {REMEDY}") from None


def load(
    path: str | Path, trust: bool = False, check_inputs: bool = True
) -> "Encoder | RuntimeModel":
    """An encoder from disk, ready to be called: ``encoder(x_BCHW)``.

    Args:
        path: an artifact folder, a file in it, or a folder with exactly one artifact below it.
        trust: open native code too, which runs with all rights of the process. What this
            installation has compiled needs no trust.
        check_inputs: see :func:`ssdistill.models.inputs.check_images`: look at every batch that
            the encoder is called with. False where batches come from this package itself.

    Returns:
        a PyTorch encoder in eval mode, or one that runs a file for another runtime.

    Raises:
        UserError: nothing to open there, several artifacts, a damaged one, or one for a runtime
            that is not installed; native code without trust. Nothing is ever unpickled.
    """
    folder = find_artifact(path)
    description = read_description(folder)
    if description.for_torch:
        encoder = load_encoder(folder)
    else:
        encoder = _load_for_runtime(description, folder, trust)
    # Of modules that are no encoders it is not known what they take.
    encoder.checks_inputs = check_inputs and encoder.spec is not None
    return encoder


def _load_for_runtime(description: Description, folder: Path, trust: bool) -> "RuntimeModel":
    from ssdistill.settings.registry import RUNTIMES

    path = folder / DESCRIPTION
    try:
        # Files from before there were several runtimes do not name theirs.
        runtime = RUNTIMES[description.runtime or "onnxruntime"]
    except UserError as error:
        if package := description.runtime_package:
            raise UserError(
                f"{path}: the runtime '{shortened(str(description.runtime))}' is of the package "
                f"{shortened(package)}, which has not been imported: install it, or add --import "
                f"{shortened(package)}"
            ) from None
        raise UserError(f"the runtime in {path} is invalid: {error}; {REMEDY}") from None
    expected = getattr(runtime, "files", (runtime.file,))
    if tuple(description.names) != expected:
        raise UserError(
            f"the weights in {path} are invalid: {runtime.kind} expects "
            f"{' and '.join(expected)}, got {' and '.join(description.names)}; {REMEDY}"
        )
    for name, sha256 in description.names.items():
        read_checked(folder / name, sha256)
    first, width = folder / description.first, description.embed_dim
    return runtime.opens(first, width, spec_of(description), trust=trust)

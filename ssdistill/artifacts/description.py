"""``model.json``: schema of an artifact's description, and its reader."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from ssdistill.artifacts.heads import Layer
from ssdistill.errors import UserError, shortened
from ssdistill.models.allowed_args import refused_argument
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, LARGEST_STEM, EncoderSpec
from ssdistill.settings import as_size, height_width
from ssdistill.settings.wording import problem_text

FORMAT = 1
DESCRIPTION = "model.json"
TORCH_WEIGHTS, CODED_WEIGHTS = "model.safetensors", "model.coded.safetensors"
LARGEST_DESCRIPTION = 2**26
"""Bytes; the longest lists in it are the channels that a pruned network still has."""
SMALLEST_DEVIATION = 1e-6
"""Images are divided by it."""
LARGEST_SIDE, LARGEST_COUNT, MOST_CHANNELS = 2**15, 2**31 - 1, 4096
REMEDY = "copy the model's folder again from its source, or save the model again"


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file in its folder")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Width = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
Side = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]


def _validated_size(size: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # One problem with one place, where a union would name each of its members. JSON has no tuples.
    try:
        return validate(tuple(size) if isinstance(size, list) else size)
    except ValidationError:
        raise ValueError(
            f"must be a side in pixels, or [height, width], from 1 to {LARGEST_SIDE}"
        ) from None


StoredSize = Annotated[
    Side | tuple[Side, Side],
    AfterValidator(lambda size: as_size(*height_width(size))),
    WrapValidator(_validated_size),
]
Few = Annotated[int, Field(ge=0, le=LARGEST_STEM)]
Deviation = Annotated[FiniteFloat, Field(ge=SMALLEST_DEVIATION)]
Pair = tuple[FiniteFloat, FiniteFloat]
Statistics = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=MOST_CHANNELS)]
Deviations = Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=MOST_CHANNELS)]


class StoredSpec(EncoderSpec):
    """A spec that comes from a file: every size has a bound, every argument is allowed."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    stem_stride: Annotated[Few, Field(gt=0)] = 1
    stem_padding: Few = 1
    image_size: StoredSize
    input_size: StoredSize | None = None
    mean: Statistics = IMAGENET_MEAN
    std: Deviations = IMAGENET_STD

    @field_validator("std")
    @classmethod
    def _check_statistics(cls, std: Deviations, info: ValidationInfo) -> Deviations:
        mean = info.data.get("mean", std)
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means go with as many deviations")
        return std


class StoredHead(BaseModel):
    """The projector beside an encoder."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    sha256: Sha256
    layers: Annotated[list[Layer], Field(min_length=1, max_length=64)]


class _Format(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    format: int


class Parent(BaseModel):
    """A stage that a model was made from."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    digest: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    sha256: Sha256


class PixelFacts(BaseModel):
    """How the images of a training became numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    channels: Annotated[list[Count], Field(max_length=MOST_CHANNELS)] | None
    names: Annotated[list[str], Field(max_length=MOST_CHANNELS)] | None
    windows: (
        Annotated[list[tuple[FiniteFloat, FiniteFloat]], Field(max_length=MOST_CHANNELS)] | None
    )


class Description(BaseModel):
    """Content of ``model.json``; unknown keys are ignored.

    Attributes:
        weights, sha256: the file to open first; of it, or of all ``files`` together.
        files: sha256 by name, where there are several.
        runtime: kind of the runtime the file is for; None for PyTorch, and in files from before
            there were several runtimes.
        runtime_package: of the plug-in that has this runtime; None for this package's own.
        module: name of a module that is no encoder.
        widths, channels, removed, coded: what compression did, see
            :func:`ssdistill.artifacts.weights.pack_weights`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    format: int
    weights: FileName = TORCH_WEIGHTS
    sha256: Sha256
    files: Annotated[dict[FileName, Sha256], Field(min_length=1, max_length=16)] | None = None
    embed_dim: Width
    runtime: str | None = None
    runtime_package: str | None = None
    module: str | None = None
    spec: StoredSpec | None = None
    projector: StoredHead | None = None
    widths: dict[str, list[Count]] = {}
    channels: dict[str, list[Count]] = {}
    removed: list[str] = []
    coded: dict[str, Count] = {}
    lineage: dict[str, Any] | None = None

    @property
    def names(self) -> dict[str, str]:
        """sha256 by name of the files that hold the weights, the one to open first."""
        return self.files or {self.weights: self.sha256}

    @property
    def first(self) -> str:
        """The file to open."""
        return next(iter(self.names))

    @property
    def for_torch(self) -> bool:
        """Whether the weights are PyTorch's, and no file for a runtime."""
        return self.first in (TORCH_WEIGHTS, CODED_WEIGHTS)

    def original(self, folder: Path) -> Parent | None:
        """The uncompressed ancestor of the model in ``folder``; None if unknown.

        Raises:
            UserError: a lineage that is none.
        """
        parents = (self.lineage or {}).get("parents")
        entry = parents.get("original") if isinstance(parents, dict) else parents
        if entry is None:
            return None
        try:
            return Parent.model_validate(entry)
        except pydantic.ValidationError as error:
            raise UserError(_one_line(folder / DESCRIPTION, error, "lineage")) from error

    def trained_on(self, folder: Path) -> dict[str, Any] | None:
        """Return channels and windows of the images that the model in ``folder`` was trained on.

        See :func:`ssdistill.data.pixel_facts.pixel_facts`; None in files of earlier versions.

        Raises:
            UserError: a lineage that is none.
        """
        facts = (self.lineage or {}).get("images")
        if facts is None:
            return None
        try:
            return PixelFacts.model_validate_json(json.dumps(facts)).model_dump()
        except pydantic.ValidationError as error:
            raise UserError(_one_line(folder / DESCRIPTION, error, "lineage.images")) from error


def read_description(folder: Path) -> Description:
    """``model.json`` of this version's format, every field of it checked.

    Raises:
        UserError: no such file, or one that describes no model; the field at fault is named.
    """
    path = folder / DESCRIPTION
    try:
        content = _content(path)
        # Before anything else: a later format may have other fields.
        version = _Format.model_validate_json(content).format
        if version != FORMAT:
            raise UserError(
                f"{path} has format {version}, but this version reads {FORMAT}: "
                "install the version of ssdistill that wrote it"
            )
        description = Description.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise UserError(_one_line(path, error)) from error
    spec = description.spec
    if spec is not None and (reason := refused_argument(spec.name, spec.library, spec.args)):
        raise UserError(f"the spec in {path} is invalid (spec.args.{reason}); {REMEDY}")
    return description


def spec_of(description: Description) -> EncoderSpec | None:
    """Convert the stored spec to an :class:`EncoderSpec`."""
    stored = description.spec
    return None if stored is None else EncoderSpec(**stored.model_dump(mode="json"))


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"no {path.name} in {path.parent}; {REMEDY}")
        if os.path.getsize(path) > LARGEST_DESCRIPTION:
            raise UserError(f"{path} is too large for a {path.name}; {REMEDY}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror or error}); check its permissions"
        ) from error


def _one_line(path: Path, error: pydantic.ValidationError, *inside: str) -> str:
    problem = error.errors(include_url=False)[0]
    place = [*inside, *(str(part) for part in problem["loc"])]
    reason = problem_text(problem)
    if not place:
        return f"{path} does not describe a model ({reason}); {REMEDY}"
    # What is wrong with a value that is absent is that it is absent.
    received = "" if problem["type"] == "missing" else f", got {shortened(repr(problem['input']))}"
    key = shortened(".".join(place), 100)
    return f"the {shortened(place[0])} in {path} is invalid ({key}: {reason}{received}); {REMEDY}"

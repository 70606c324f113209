"""Settings of the evaluation of finished encoders."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AliasChoices,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import Protocol
from ssdistill.settings import BEFORE_REBUILDING, Settings
from ssdistill.settings.registry import PROTOCOLS

if TYPE_CHECKING:
    from ssdistill.settings.kinds.protocols import AnySettings as AnyProtocol
    from ssdistill.settings.kinds.protocols import ByKind
else:
    AnyProtocol = PROTOCOLS.union

HASHED_AS = "gauge_images"
"""Name of ``label_free_images`` in version 0.1, by which stages are hashed and recorded."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class _Looks(Settings):
    """What is looked at beside the protocols, and what holds for all of these."""

    pixels: bool = False
    label_free_images: Annotated[
        int, Field(ge=20, validation_alias=AliasChoices("label_free_images", HASHED_AS))
    ] = 2000
    also: dict[Name, AnyProtocol | None] = Field(default={})

    @property
    def protocols(self) -> list[Protocol]:
        """Every requested protocol."""
        return list(self._by_key().values())

    def check_images(self, num_train: int) -> None:
        """Check that the training images suffice for every protocol.

        Raises:
            UserError: naming the protocol's key and what is wrong with it.
        """
        for key, protocol in self._by_key().items():
            try:
                protocol.check(num_train)
            except UserError as error:
                raise UserError(f"evaluate.{key}: {error}") from None

    def check_pixels(self, images: Any) -> None:
        """Check that every protocol is defined for images like these.

        Raises:
            UserError: naming the protocol's key and what it requires.
        """
        for key, protocol in self._by_key().items():
            try:
                protocol.check_pixels(images)
            except UserError as error:
                raise UserError(f"evaluate.{key}: {error}") from None

    def left_out_of_several(self) -> str:
        """Return a warning of the protocols that are skipped for several labels; empty if none.

        Raises:
            UserError: one of them was requested.
        """
        left_out = []
        for key, protocol in self._by_key().items():
            if protocol.takes_several():
                continue
            if key not in PROTOCOLS.classes or key in self.model_fields_set:
                raise UserError(
                    f"evaluate.{key}: {protocol.refusal()}, and set evaluate.{key}=null"
                )
            left_out.append(key)
        if not left_out:
            return ""
        return (
            f"images may have several labels: evaluated with mean average precision; "
            f"{', '.join(left_out)} (default) skipped, which requires one label per image"
        )

    def _by_key(self) -> dict[str, Protocol]:
        settings_by_key = {kind: getattr(self, kind) for kind in PROTOCOLS.classes}
        settings_by_key |= {f"also.{name}": settings for name, settings in self.also.items()}
        return {
            key: PROTOCOLS.build(settings)
            for key, settings in settings_by_key.items()
            if settings is not None
        }

    @field_validator("*", mode="before")
    @classmethod
    def _explained(cls, value: Any, info: ValidationInfo) -> Any:
        switch = info.field_name in PROTOCOLS.classes and value is not None
        if switch and not isinstance(value, (dict, Settings)):
            raise ValueError(
                "write its settings, {} for the defaults of all, or null to disable it"
            )
        return value

    @field_validator("*")
    @classmethod
    def _check_buildable(cls, value: Any) -> Any:
        # What only a constructor can check is checked now, not once a model is trained.
        for name, settings in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(settings, Settings):
                try:
                    PROTOCOLS.build(settings)
                except UserError as error:
                    raise ValueError(f"{name}: {error}" if name else str(error)) from error
        return value

    @model_validator(mode="after")
    def _check_names(self) -> "_Looks":
        """Reject two protocols of one name, which would write the same metrics."""
        keys: dict[str, str] = {}
        for key, protocol in self._by_key().items():
            if (first := keys.setdefault(protocol.name, key)) != key:
                raise ValueError(
                    f"{first} and {key} would both write probe/{protocol.name}/…: "
                    "set another preset for one of them, or null to disable it"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_unrequested(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # A protocol that nobody requested, say because it is new, must not tell one stage from
        # another; that one of the defaults is disabled must.
        merged: dict[str, Any] = {
            name: value
            for name, value in handler(self).items()
            if value is not None or name not in PROTOCOLS.classes or PROTOCOLS[name].by_default
        }
        also = {name: value for name, value in merged.pop("also", {}).items() if value is not None}
        if not info.by_alias:
            merged[HASHED_AS] = merged.pop("label_free_images")
        return merged | ({"also": also} if also else {})


def _add_protocols() -> None:
    """Give ``evaluate`` a key for every protocol of the plug-ins that there are now."""
    fields = EvaluateSettings.__pydantic_fields__
    for kind in _added:
        del fields[kind]
    _added[:] = [kind for kind in PROTOCOLS.classes if kind not in fields]
    for kind in _added:
        annotation, default = _field(kind)
        fields[kind] = FieldInfo.from_annotated_attribute(annotation, default)


_added: list[str] = []
"""Keys of protocols that were added after the class was made."""


def _field(kind: str) -> Any:
    if kind in _Looks.model_fields or hasattr(_Looks, kind):
        raise TypeError(f"protocol '{kind}' has the name of another setting of evaluate")
    schema = PROTOCOLS.schema(kind)
    return (schema | None, schema() if PROTOCOLS[kind].by_default else None)


if TYPE_CHECKING:

    class EvaluateSettings(_Looks, ByKind):
        """Which protocols to run, and what else to measure."""

else:
    EvaluateSettings = create_model(
        "EvaluateSettings",
        __base__=_Looks,
        __module__=__name__,
        __doc__="""Which protocols to run, and what else to measure.

        Every protocol is a key of its own kind (``ssdistill list protocols``) that holds its
        settings: {} for the defaults, null to disable it.

        Args:
            pixels: evaluate the raw pixels too (shrunk to at most 16x16), as the row to beat.
            label_free_images: test images the label-free metrics use, at most.
            also: further protocols, such as a second preset of one, by any name; null takes one
                back that an extended file set.
        """,
        **{kind: _field(kind) for kind in PROTOCOLS.classes},
    )
    BEFORE_REBUILDING.append(_add_protocols)

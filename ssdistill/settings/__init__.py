"""Base class and number types of everything that can be written in a config.

What one kind may be told is in the constructor of its class.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, dataclass_transform

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass

    # Checkers read no model_config, and a class argument would have to stand at every subclass.
    @dataclass_transform(
        kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr)
    )
    class _Frozen(ModelMetaclass): ...
else:
    _Frozen = type(BaseModel)


class Settings(BaseModel, metaclass=_Frozen):
    """Frozen, finite, and closed to keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        _MADE.append(cls)


_MADE: list[type[Settings]] = []
"""Every class of settings, in the order in which they were made."""


BEFORE_REBUILDING: list[Callable[[], None]] = []
"""What adds keys to models that have one for every kind."""


def rebuild_settings() -> None:
    """Let every model know the kinds that have been added since it was made."""
    for add_keys in BEFORE_REBUILDING:
        add_keys()
    for cls in list(_MADE):  # parts were made before what contains them
        cls.model_rebuild(force=True)


def _usable_name(name: str) -> str:
    if name.split(".")[0].upper() in RESERVED or name.endswith("."):
        raise ValueError(f"'{name}' cannot name a folder on every system; choose another name")
    return name


RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(10))}
"""Names that some systems keep for devices, whatever the ending."""
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100),
    AfterValidator(_usable_name),
]
"""What a folder, a row of a table or a group of runs may be called."""
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A fraction between 0 and 1, both included."""
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
"""A fraction strictly between 0 and 1."""


def height_width(size: "int | tuple[int, int]") -> tuple[int, int]:
    """Return height and width of a size: one side of a square, or the two of them."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def as_size(height: int, width: int) -> "int | tuple[int, int]":
    """Return a height and a width as they are written in a config: a square by its side."""
    return height if height == width else (height, width)


def size_text(size: "int | tuple[int, int]") -> str:
    """Return a size for a message: ``256x128``, height first."""
    return "x".join(str(side) for side in height_width(size))


def short_size(size: "int | tuple[int, int]") -> str:
    """Return a size for a sentence about pixels: ``224``, or ``256x128``."""
    return str(size) if isinstance(size, int) else size_text(size)


def as_written(size: "int | tuple[int, int]") -> str:
    """Return a size as an override of a config writes it: ``224``, or ``[256,128]``."""
    return str(size) if isinstance(size, int) else f"[{size[0]},{size[1]}]"


def _square_by_side(size: "int | tuple[int, int]") -> "int | tuple[int, int]":
    return as_size(*height_width(size))


def _of_pixels(size: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # One problem with one place, where a union would name each of its members.
    try:
        return validate(size)
    except ValidationError:
        raise ValueError("must be a side in pixels, or [height, width], both above 0") from None


Size = Annotated[
    PositiveInt | tuple[PositiveInt, PositiveInt],
    AfterValidator(_square_by_side),
    WrapValidator(_of_pixels),
]
"""Pixels: the side of a square, or ``[height, width]``. A square is kept as its side alone, so that
both ways of writing it have one hash."""

"""Base class and number types of everything that can be written in a config."""

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ssdistill.settings.places import item_types, members, names


class Settings(BaseModel):
    """Frozen, finite, and closed to keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        """``steps: yes`` is no number, though Python takes true for 1."""
        if not isinstance(values, dict):
            return values
        return {
            name: _as_text(value) if name in _numbers(cls) else value
            for name, value in values.items()
        }


@cache
def _numbers(cls: type[BaseModel]) -> frozenset[str]:
    """Names of the fields that hold numbers and cannot be true or false."""
    return frozenset(name for name, field in names(cls).items() if _is_number(field.annotation))


def _is_number(annotation: Any) -> bool:
    kinds, pending = set(), [annotation]
    while pending:
        for member in members(pending.pop()):
            pending += item_types(member)
            kinds.add(member)
    return bool({int, float} & kinds) and not {bool, Any} & kinds


def _as_text(value: Any) -> Any:
    """True and false, also in lists, as words that no number is read from."""
    if isinstance(value, list | tuple):
        return [_as_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value


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
"""A share between 0 and 1, both included."""
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
"""A share strictly between 0 and 1."""

"""A class that is to be checked, with its settings; and a check, with what it applies to."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn
from unittest import SkipTest

import torch
from pydantic import ValidationError
from torch import Tensor

from ssdistill.errors import UserError, one_line
from ssdistill.settings import Settings
from ssdistill.settings.registry import REGISTRIES, Registry

UNKNOWN = "no_such_setting"


@dataclass(eq=False)
class Candidate:
    """A class of a family, registered or not, with the settings that it is checked with.

    Attributes:
        registry: of the family.
        cls: the class.
        settings: as a config has them; those that are missing are at their defaults.
        known: what one check has found and another one can use.
    """

    registry: Registry[Any]
    cls: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        # Registries and schemas are made anew in another process.
        return _restored, (self.registry.noun, self.cls, dict(self.settings))

    @property
    def kind(self) -> str:
        """What a config calls it."""
        return self.cls.kind

    @cached_property
    def schema(self) -> type[Settings]:
        """The model of its settings.

        Raises:
            AssertionError: a setting without a type.
        """
        for name in self.own_settings:
            typed = name in inspect.get_annotations(self.cls.__init__)
            demand(typed, f"the setting {name} has no type; write {name}: float = 1.0, or the like")
        return self.registry.schema_of(self.cls)

    @property
    def own_settings(self) -> list[str]:
        """Its keyword-only arguments, which a config may set."""
        parameters = inspect.signature(self.cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def chosen(self, **changes: Any) -> Any:
        """Its settings, validated as those of a config are."""
        return self.schema.model_validate({**self.settings, **changes})

    def build(self, *runtime: Any, changes: Mapping[str, Any] | None = None) -> Any:
        """An object of it, from what the program supplies and its settings."""
        return self.registry.build_of(self.cls, self.chosen(**(changes or {})), *runtime)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made by the first check that wants it."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


def _restored(noun: str, cls: Any, settings: dict[str, Any]) -> Candidate:
    registry = next(registry for registry in REGISTRIES if registry.noun == noun)
    return Candidate(registry, cls, settings)


def _always(candidate: Candidate) -> bool:
    return True


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        run: raises AssertionError, which says what is wrong in one line.
        applies: whether a class promises what the check is about.
    """

    run: Callable[[Candidate], None]
    applies: Callable[[Candidate], bool] = _always


def run_checks(checks: Mapping[str, Check], candidate: Candidate) -> None:
    """Run all checks of a family.

    Raises:
        AssertionError: some of them fail; each is named, with what is wrong, in a line of its own.
    """
    faults: list[str] = []
    causes: list[Exception] = []
    with torch.random.fork_rng(devices=[]):
        for name, check in checks.items():
            try:
                if check.applies(candidate):
                    check.run(candidate)
            except SkipTest:
                continue
            except AssertionError as error:
                faults.append(f"{name}: {one_line(error)}")
            except Exception as error:  # a class of somebody else may raise anything
                faults.append(f"{name}: {type(error).__name__}: {one_line(error)}")
                causes.append(error)
    if not faults:
        return
    what = f"{candidate.cls.__qualname__} ({candidate.registry.noun})"
    text = f"{what} fails {len(faults)} of {len(checks)} checks:\n  " + "\n  ".join(faults)
    raise AssertionError(text if len(faults) > 1 else f"{what}: {faults[0]}") from (
        causes[0] if causes else None
    )


def demand(holds: object, fault: str) -> None:
    """Raise an AssertionError that says ``fault``, also where Python drops assert statements."""
    if not holds:
        raise AssertionError(fault)


def skip(reason: str) -> NoReturn:
    """End a check that cannot be made of this class; pytest shows it as skipped."""
    raise SkipTest(reason)


def demand_close(found: float, expected: float, rel: float, absolute: float, what: str) -> None:
    """Demand that two numbers differ by no more than either tolerance; no NaN does."""
    near = abs(found - expected) <= max(rel * abs(expected), absolute)
    demand(near, f"{what} is {found:.6g}, expected {expected:.6g}")


def demand_finite(tensors: Mapping[str, Tensor]) -> None:
    """Demand that no tensor, and no gradient of one, has NaN or infinity."""
    for name, tensor in tensors.items():
        demand(torch.isfinite(tensor).all(), f"{name} has NaN or infinity")
        gradient = tensor.grad if tensor.is_leaf else None
        finite = gradient is None or torch.isfinite(gradient).all()
        demand(finite, f"the gradient of {name} has NaN or infinity")


def one_line_error(error: Exception, what: str) -> None:
    """Demand that an error that a user sees is one line."""
    demand("\n" not in str(error), f"the error of {what} has several lines; write one")


def has_one_line_summary(candidate: Candidate) -> None:
    """The first line of its docstring is a sentence, which ``ssdistill list`` shows."""
    first = (inspect.getdoc(candidate.cls) or "").partition("\n")[0]
    demand(first.endswith("."), "the docstring must begin with a sentence in one line, with a .")


def has_a_usable_kind(candidate: Candidate) -> None:
    """Its kind is a word that configs, metrics and folders can have."""
    kind = vars(candidate.cls).get("kind")
    demand(kind is not None, "the class has no kind of its own; set kind = 'a_name'")
    usable = isinstance(kind, str) and re.fullmatch("[a-z][a-z0-9_]*", kind)
    demand(usable, f"kind={kind!r}: use lower-case letters, digits and _")


def explains_every_setting(candidate: Candidate) -> None:
    """``name: …`` in the docstring says what each of its own settings does."""
    text = inspect.getdoc(candidate.cls) or ""
    missing = [n for n in candidate.own_settings if not re.search(rf"\b{n}\b.*:", text)]
    demand(not missing, f"the docstring does not explain {', '.join(missing)}: add lines to Args")


def refuses_unknown_settings(candidate: Candidate) -> None:
    """A setting that it does not have is refused, and named."""
    try:
        candidate.chosen(**{UNKNOWN: 1})
    except ValidationError as error:
        demand(UNKNOWN in str(error), f"a setting {UNKNOWN} is refused without its name")
    else:
        raise AssertionError(f"a setting {UNKNOWN} is accepted; take no **arguments")


def names_its_origin(candidate: Candidate) -> None:
    """``paper`` says in one line where it comes from."""
    paper = getattr(candidate.cls, "paper", "")
    one = isinstance(paper, str) and paper and "\n" not in paper
    demand(one, "paper must say in one line where it comes from, such as 'Author, Venue Year'")


DESCRIBED = {
    "kind": Check(has_a_usable_kind),
    "summary": Check(has_one_line_summary),
    "documented_settings": Check(explains_every_setting),
    "unknown_setting": Check(refuses_unknown_settings),
}
"""Checks of every family."""


def refused(work: Callable[[], Any], what: str) -> str:
    """What the error says by which ``work`` is refused.

    Raises:
        AssertionError: it is not refused, or in several lines.
    """
    try:
        work()
    except UserError as error:
        one_line_error(error, what)
        return str(error)
    raise AssertionError(f"{what} must be refused with a UserError, but is accepted")

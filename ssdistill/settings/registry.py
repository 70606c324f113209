"""Registry of kinds: a class's keyword-only arguments are its config schema.

A registry looks through one package (or module) for subclasses of a base that carry their
own ``kind``. ``schema(kind)`` turns the keyword-only part of the constructor into a frozen
pydantic model; positional arguments are what the program supplies at run time (shapes, an
encoder), never what a config may set. Adding a kind is therefore writing one file, and
``make stubs`` tells type checkers and editors of it: the stubs in ``kinds/`` show the schemas.
Packages of other people add kinds as well, see :mod:`ssdistill.settings.plugins`.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_type_hints,
)

from pydantic import Field, GetCoreSchemaHandler, create_model

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.settings import Settings
from ssdistill.settings.later import WithLater
from ssdistill.settings.plugin_classes import add_classes
from ssdistill.settings.plugins import PLUGINS, Plugin, failures, package_of, plugins

if TYPE_CHECKING:
    from ssdistill.settings.kinds import (
        losses,
        methods,
        protocols,
        runtimes,
        sources,
        steps,
        teachers,
    )


Member = TypeVar("Member")
"""Base class of one family."""


class Registry(Generic[Member]):
    """All classes of one family.

    Args:
        noun: what one member is called in messages, e.g. ``"loss"``.
        place: dotted name of the package or module to search.
        base: dotted name (``module:Class``) of the base class; imported on first use.
        schema_base: dotted name of the settings every member has in a config beside its own
            arguments; they are not passed to the constructor. A class attribute ``paper_x``
            is that kind's default of the shared setting ``x``.
    """

    def __init__(
        self,
        noun: str,
        place: str,
        base: str,
        schema_base: str = "ssdistill.settings:Settings",
    ):
        self.noun, self.place, self.base, self.schema_base = noun, place, base, schema_base
        self._made: dict[str, tuple[type[Member], type[Settings]]] = {}

    @cached_property
    def classes(self) -> dict[str, type[Member]]:
        """Every class by its kind, in alphabetical order."""
        base: Any = imported(self.base)
        root = importlib.import_module(self.place)
        modules = [root]
        for info in pkgutil.iter_modules(getattr(root, "__path__", [])):
            modules.append(importlib.import_module(f"{self.place}.{info.name}"))
        by_kind: dict[str, Any] = {}
        for module in modules:
            for cls in vars(module).values():
                is_member = inspect.isclass(cls) and issubclass(cls, base) and "kind" in vars(cls)
                if is_member and by_kind.setdefault(kind := vars(cls)["kind"], cls) is not cls:
                    raise TypeError(f"two {self.noun} classes have the kind '{kind}'")
        add_classes(by_kind, base, self.noun, lambda cls: self.schema_of(cls, ()))
        return dict(sorted(by_kind.items()))

    def plugin_of(self, kind: object) -> Plugin | None:
        """Return the plug-in that has added a kind; None for those of this package."""
        if not PLUGINS and not plugins():
            return None
        cls = self.classes.get(kind) if isinstance(kind, str) else None
        return PLUGINS.get(package_of(cls)) if cls else None

    def forget(self) -> None:
        """Look for kinds again when they are next needed; known ones keep their schemas."""
        vars(self).pop("classes", None)

    def __getitem__(self, kind: str) -> type[Member]:
        if not isinstance(kind, str) or kind not in self.classes:
            raise UserError(
                f"unknown {self.noun} '{shortened(kind)}'{nearest(kind, self.classes)}; "
                f"known: {', '.join(self.classes)}{failures()}"
            )
        return self.classes[kind]

    def schema(self, kind: str) -> type[Settings]:
        """The config model of one kind: the shared settings and the constructor's keywords.

        Raises:
            UserError: there is no such kind.
        """
        cls = self[kind]
        if self._made.get(kind, (None,))[0] is not cls:
            self._made[kind] = cls, self.schema_of(cls)
        return self._made[kind][1]

    def schema_of(self, cls: Any, packages: tuple[str, ...] | None = None) -> type[Settings]:
        """Make the config model of a class, registered or not.

        Args:
            packages: to import before its settings are unpickled; by default its plug-in's.
        """
        hints = get_type_hints(cls.__init__, include_extras=True)
        base: type[Settings] = imported(self.schema_base)
        fields: dict[str, Any] = {"kind": (Literal[cls.kind], cls.kind)}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[name] = (hints[name], default)
        for name, field in base.model_fields.items():
            if (default := getattr(cls, f"paper_{name}", None)) is not None:
                fields[name] = (field.rebuild_annotation(), default)
        schema = create_model(
            f"{cls.__name__}Settings",
            __base__=(WithLater, base) if vars(cls).get("later_settings") else base,
            __doc__=inspect.getdoc(cls),
            **fields,
        )

        # pickle looks classes up by module and name; this one has no place in any.
        def reduced(self: Settings) -> tuple[Any, ...]:
            return _unpickled, (noun, cls.kind, self.__getstate__(), packages)

        noun = self.noun
        if packages is None:
            plugin = self.plugin_of(cls.kind)
            packages = tuple(module.__name__ for module in plugin.modules[:1]) if plugin else ()
        schema.__reduce__ = reduced
        if issubclass(schema, WithLater):
            schema.later_settings = vars(cls)["later_settings"]
        return schema

    @property
    def union(self) -> Any:
        """A type for pydantic: any member's settings, told apart by ``kind``."""
        return type(f"Any {self.noun}", (AnyOf,), {"registry": self})

    def any_of_now(self) -> Any:
        """Return that type for the kinds there are now."""
        schemas = tuple(self.schema(kind) for kind in self.classes)
        if len(schemas) == 1:
            return schemas[0]
        return Annotated[Union[schemas], Field(discriminator="kind")]  # noqa: UP007

    def build(self, settings: Settings, *runtime: Any, **runtime_named: Any) -> Member:
        """The object that ``settings`` describes; ``runtime`` goes in before the settings."""
        return self.build_of(self[vars(settings)["kind"]], settings, *runtime, **runtime_named)

    def build_of(
        self, cls: type[Member], settings: Settings, *runtime: Any, **runtime_named: Any
    ) -> Member:
        """An object of a class, registered or not, from settings of :meth:`schema_of`."""
        skip = {"kind", *imported(self.schema_base).model_fields}
        chosen = {name: getattr(settings, name) for name in type(settings).model_fields}
        # What the base has as well, and the class asks for, it is given.
        skip -= set(inspect.signature(cls).parameters)
        own = {name: value for name, value in chosen.items() if name not in skip}
        return cls(*runtime, **runtime_named, **own)


@dataclass(frozen=True)
class KindOf:
    """Marks a setting of text that names a kind of ``registry``.

    A constructor looks the name up, as late as it is read; the stubs show which names there are.
    """

    registry: Registry[Any]


class AnyOf:
    """Base of the types that :attr:`Registry.union` returns.

    They stand for the settings of any kind that there is when a model is made, or made again.
    """

    registry: ClassVar[Registry[Any]]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(cls.registry.any_of_now())


def _unpickled(
    noun: str, kind: str, state: dict[Any, Any], packages: tuple[str, ...] = ()
) -> Settings:
    """Return settings sent by another process, after importing the plug-in that has the kind."""
    registry = next(registry for registry in REGISTRIES if registry.noun == noun)
    if kind not in registry.classes:
        from ssdistill.settings.adding import add_plugin

        for name in packages:
            add_plugin(name)
    schema = registry.schema(kind)
    settings = schema.__new__(schema)
    settings.__setstate__(state)
    return settings


def settings_of(instance: Any) -> dict[str, Any]:
    """The keyword-only constructor arguments of an object that keeps each under its name."""
    parameters = inspect.signature(type(instance).__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return {name: getattr(instance, name) for name in names}


def imported(dotted: str) -> Any:
    module, name = dotted.split(":")
    return getattr(importlib.import_module(module), name)


LOSSES = cast(
    "losses.Kinds",
    Registry("loss", "ssdistill.losses", "ssdistill.losses:Loss", "ssdistill.losses:LossSettings"),
)
METHODS = cast(
    "methods.Kinds",
    Registry(
        "pretraining method",
        "ssdistill.pretrain",
        "ssdistill.pretrain:Method",
        "ssdistill.train.settings:TrainSettings",
    ),
)
TEACHERS = cast(
    "teachers.Kinds", Registry("teacher", "ssdistill.teachers", "ssdistill.teachers:Teacher")
)
STEPS = cast(
    "steps.Kinds",
    Registry(
        "compression step",
        "ssdistill.compress",
        "ssdistill.compress:Step",
        "ssdistill.compress:StepSettings",
    ),
)
PROTOCOLS = cast(
    "protocols.Kinds",
    Registry("protocol", "ssdistill.evaluate.protocols", "ssdistill.evaluate.protocols:Protocol"),
)
RUNTIMES = cast(
    "runtimes.Kinds",
    Registry("runtime", "ssdistill.artifacts.runtimes", "ssdistill.artifacts.runtimes:Runtime"),
)
SOURCES = cast(
    "sources.Kinds",
    Registry(
        "data source",
        "ssdistill.data.sources",
        "ssdistill.data.splits:Source",
        "ssdistill.data.settings:StoreSettings",
    ),
)
REGISTRIES: tuple[Registry[Any], ...] = cast(
    "tuple[Registry[Any], ...]", (LOSSES, METHODS, TEACHERS, STEPS, PROTOCOLS, RUNTIMES, SOURCES)
)
"""Every family of kinds."""

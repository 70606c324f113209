"""Write what an editor and a type checker know of the classes that the registries make.

``python .ci/stubs.py`` writes the files, ``python .ci/stubs.py --check`` fails where one is not
current. There is one file for each registry in ``ssdistill/settings/kinds/`` and one for the
protocols as functions of ``ssdistill.evaluate``.
"""

import inspect
import subprocess
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from ssdistill.evaluate.functions import protocol_function
from ssdistill.settings import Settings, registry
from ssdistill.settings.registry import PROTOCOLS, AnyOf, KindOf, Registry

ROOT = Path(__file__).resolve().parents[1]
KINDS = "ssdistill.settings.kinds"
REGISTRIES: dict[str, Registry] = {
    name.lower(): value for name, value in vars(registry).items() if isinstance(value, Registry)
}
HOMES = {
    schema: (f"{KINDS}.{family}", schema.__name__)
    for family, found in REGISTRIES.items()
    for schema in (found.schema(kind) for kind in found.classes)
}
"""Where a class that was made when the program ran stands in the stubs."""
HEAD = "# Written by `make stubs`; do not edit.\n"


class Stub:
    """The text of one stub: its imports are those that the types in it ask for.

    Args:
        module: where it stands.
        lenient: show what a value may be before pydantic has read it: a list where the setting
            is a tuple, a mapping where it is a section.
    """

    def __init__(self, module: str, lenient: bool = False):
        self.module, self.lenient = module, lenient
        self.imports: set[tuple[str, str]] = set()
        self.body: list[str] = []

    def name(self, cls: Any) -> str:
        """How this file calls a class."""
        module, name = HOMES.get(cls, (cls.__module__, cls.__qualname__))
        return name if module == "builtins" else self.imported(module, name)

    def imported(self, module: str, name: str) -> str:
        if module != self.module:
            self.imports.add((module, name.split(".")[0]))
        return name

    def shown(self, annotation: Any) -> str:
        """A type as source; without what only pydantic reads."""
        if isinstance(annotation, type) and issubclass(annotation, AnyOf):
            return self.shown(annotation.registry.any_of_now())
        origin, args = get_origin(annotation), get_args(annotation)
        if annotation is None or annotation is types.NoneType:
            return "None"
        if origin is Annotated:
            converted = any(isinstance(part, BeforeValidator) for part in args[1:])
            return self.shown(Any if converted and self.lenient else args[0])
        if origin in (Union, types.UnionType):
            return " | ".join(dict.fromkeys(self.shown(arg) for arg in args))
        if annotation is Any:
            return self.imported("typing", "Any")
        if origin is Literal:
            self.imported("typing", "Literal")
            return f"Literal[{', '.join(map(repr, args))}]"
        if self.lenient and origin is tuple:
            return self.shown(Sequence[args[0] if args[1:] in ((), (...,)) else Union[args]])  # noqa: UP007
        if self.lenient and isinstance(annotation, type) and issubclass(annotation, Settings):
            return f"{self.name(annotation)} | {self.shown(Mapping[str, Any])}"
        if origin is not None:
            inner = ("..." if arg is Ellipsis else self.shown(arg) for arg in args)
            return f"{self.name(origin)}[{', '.join(inner)}]"
        if isinstance(annotation, typing.ForwardRef | str):
            raise TypeError(f"{self.module}: the type {annotation!r} is a name, not a class")
        return self.name(annotation)

    def text(self) -> str:
        modules: dict[str, list[str]] = {}
        for module, name in sorted(self.imports):
            modules.setdefault(module, []).append(name)
        ours = [module for module in modules if module.startswith("ssdistill")]
        library = [module for module in modules if module.split(".")[0] in sys.stdlib_module_names]
        others = [module for module in modules if module not in (*ours, *library)]
        blocks = [
            "".join(f"from {module} import {', '.join(modules[module])}\n" for module in group)
            for group in (library, others, ours)
            if group
        ]
        return formatted("\n".join([HEAD, *blocks, *self.body]))


def formatted(text: str) -> str:
    """The text in the style of the repository, imports in its order."""
    ruff = str(Path(sys.executable).parent / "ruff")
    for command in (["check", "--select=I", "--fix", "--quiet", "--exit-zero"], ["format"]):
        done = subprocess.run(
            [ruff, *command, "--stdin-filename", str(ROOT / "ssdistill/stub.pyi"), "-"],
            input=text, capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        text = done.stdout
    return text


def family_stub(family: str) -> str:
    """The settings of every kind of one registry, and the registry as a checker sees it."""
    found, stub = REGISTRIES[family], Stub(f"{KINDS}.{family}")
    base, member = (dotted.split(":") for dotted in (found.schema_base, found.base))
    shared = registry.imported(found.schema_base).model_fields
    by_kind = {kind: found.schema(kind) for kind in found.classes}
    for name, count in Counter(schema.__name__ for schema in by_kind.values()).items():
        if count > 1:
            raise TypeError(f"{count} classes of {family} are called {name}")
    for kind, schema in by_kind.items():
        stub.body += [f"class {schema.__name__}({stub.imported(*base)}):"]
        stub.body += [f'    """{(inspect.getdoc(found[kind]) or kind).splitlines()[0]}"""']
        for name, field in schema.model_fields.items():
            same = name in shared and shared[name].is_required() == field.is_required()
            if not same:
                default = "" if field.is_required() else " = ..."
                stub.body += [f"    {name}: {stub.shown(_type_of(field))}{default}"]
        stub.body += [""]
    names = [schema.__name__ for schema in by_kind.values()]
    stub.body += [f"AnySettings = {' | '.join(names)}"]
    stub.imported(Registry.__module__, Registry.__name__)
    stub.body += [f"class Kinds(Registry[{stub.imported(*member)}]):"]
    for kind, schema in (*by_kind.items(), ("", registry.imported(found.schema_base))):
        kind_type = stub.shown(Literal[kind]) if kind else "str"
        stub.body += [f"    @{stub.imported('typing', 'overload')}"]
        stub.body += [f"    def schema(self, kind: {kind_type}) -> type[{stub.name(schema)}]: ..."]
    if family == "protocols":
        stub.body += [f"class ByKind({stub.imported(*base)}):"]
        stub.body += [f"    {kind}: {s.__name__} | None = ..." for kind, s in by_kind.items()]
    return stub.text()


def _type_of(field: FieldInfo) -> Any:
    """The type of a setting; of text that names a kind, the names that there are."""
    of = next((part.registry for part in field.metadata if isinstance(part, KindOf)), None)
    return field.annotation if of is None else Literal[tuple(of.classes)]


def functions_stub() -> str:
    """Every protocol as a function of :mod:`ssdistill.evaluate`."""
    stub = Stub("ssdistill.evaluate", lenient=True)
    for kind in PROTOCOLS.classes:
        judge = protocol_function(kind)
        returned = stub.shown(inspect.signature(judge).return_annotation)
        first = (inspect.getdoc(judge) or kind).splitlines()[0]
        stub.body += [f"def {kind}({', '.join(_parameters(stub, judge))}) -> {returned}:"]
        stub.body += [f'    """{first}"""']
    return stub.text()


def _parameters(stub: Stub, function: Callable[..., Any]) -> Iterator[str]:
    keywords = False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keywords:
            keywords = True
            yield "*"
        default = "" if parameter.default is inspect.Parameter.empty else " = ..."
        yield f"{name}: {stub.shown(parameter.annotation)}{default}"


def stubs() -> dict[str, str]:
    """Every stub by its path from the root of the repository."""
    folder = "ssdistill/settings/kinds"
    families = {f"{folder}/{family}.pyi": family_stub(family) for family in REGISTRIES}
    return {
        f"{folder}/__init__.pyi": HEAD,
        **families,
        "ssdistill/evaluate/__init__.pyi": functions_stub(),
    }


def outdated() -> list[str]:
    """The stubs that are missing, not current, or of a registry that is gone."""
    wanted = stubs()
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "ssdistill").rglob("*.pyi")}
    stale = {
        name
        for name, text in wanted.items()
        if name not in there or (ROOT / name).read_text(encoding="utf-8") != text
    }
    return sorted(stale | (there - wanted.keys()))


def main() -> None:
    if "--check" in sys.argv[1:]:
        if stale := outdated():
            sys.exit(f"not current: {', '.join(stale)}; run make stubs")
        return
    for name, text in stubs().items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

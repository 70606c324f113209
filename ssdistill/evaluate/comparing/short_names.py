"""Short names for models in tables."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from ssdistill.errors import UserError
from ssdistill.evaluate.opening.named_encoders import named_encoder
from ssdistill.record.run_record import role_of

SAYING_NOTHING = re.compile(r"model|model\..*|s\d+")
"""Parts of a path that say little: where every run keeps its model."""
DIGEST = re.compile(r"-[0-9a-f]{8}$")
"""End of a stage's folder that tells it from others of the same name."""


def short_names(sources: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell it from the others.

    A model of a run has the name that it has in the run's tables, ``teacher/s0/model`` is called
    ``teacher`` and ``timm:resnet18@w.pth`` ``resnet18``, unless there is another.

    Raises:
        UserError: one is listed twice; list it once.
    """
    twice = [source for source in sources if sources.count(source) > 1]
    if twice:
        raise UserError(f"{twice[0]} is listed twice; list it once")
    for parts_of in (_name_parts, _informative_parts, _with_file):
        parts = [parts_of(source) for source in sources]
        names = [_shortest(one, [p for p in parts if p is not one]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _with_file(source: str) -> list[str]:
    """Of a name of timm's also the file, which tells two weights of a network apart."""
    return [part for part in re.split(r"[/\\@:]", source) if part not in ("", ".", "..")]


def _name_parts(source: str) -> list[str]:
    if role := _role(Path(source)):
        return [role]
    return [DIGEST.sub("", part) for part in _informative_parts(source)]


def _role(path: Path) -> str | None:
    """What a model was called in the run that made it."""
    return next(filter(None, map(role_of, (path, *path.parents[:2]))), None)


def _informative_parts(source: str) -> list[str]:
    if named := named_encoder(source):
        return [named.name]
    path = PurePath(source)
    parts = [p for p in (*path.parts[:-1], _stem(path)) if p not in ("/", ".", "..")]
    return [p for p in parts if not SAYING_NOTHING.fullmatch(p)] or parts or [source]


def _stem(path: PurePath) -> str:
    return path.stem if path.suffix in (".onnx", ".safetensors") else path.name


def _shortest(parts: list[str], others: list[list[str]]) -> str:
    """The shortest end of ``parts`` that no other one has."""
    for length in range(1, len(parts) + 1):
        if all(other[-length:] != parts[-length:] for other in others):
            return "/".join(parts[-length:])
    return "/".join(parts)

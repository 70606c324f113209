"""Read the YAML subset of configs: mappings with text keys, lists, text, numbers, booleans, null.

Whatever else YAML can say is refused before it is built: tags, values that contain themselves,
aliases that multiply, numbers that are not finite, nesting without end.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ssdistill.errors import UserError, shortened

MOST_BYTES = 1 << 20
MOST_VALUES = 50_000
"""Values in one document, every alias counted as what it stands for."""
LONGEST_NUMBER = 100
"""Digits; Python refuses to read one of thousands."""
DEEPEST = 40
"""Mappings and lists inside each other."""
PLAIN_NAMES = ("str", "int", "float", "bool", "null", "map", "seq")
PLAIN = {f"tag:yaml.org,2002:{name}" for name in PLAIN_NAMES}
FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
COMPLAINTS = {
    "mapping values are not allowed": (
        "a colon and a blank within a value, or keys that are indented differently",
        "put the value in quotes, or indent the keys alike",
    ),
    "cannot start any token": (
        "a tab before a key, or a value that begins with a sign of YAML's",
        "indent by blanks, or put the value in quotes",
    ),
    "did not find expected ',' or": ("a bracket that is not closed", "close it"),
    "unexpected end of stream": ("a quote that is not closed", "close it"),
    "undefined alias": ("* refers to nothing", "put the value in quotes"),
    "found another document": ("several documents", "keep one"),
}
"""What a parser complains of most, and what that is to one who wrote the file, with a remedy."""
INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """YAML 1.1 in which 1e-3 is a number, and 2024-01-01 is text.

    010 is not 8 and 1:30 is not 90: both are text.
    """


OTHER_RULES = (":timestamp", ":float", ":int")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in entries if not tag.endswith(OTHER_RULES)]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))


def read_file(path: Path) -> Any:
    """The value that a YAML file holds; None for an empty one.

    Raises:
        UserError: the file cannot be read, or is not YAML that a config may hold; one line, or
            one a problem under a line that names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: larger than 1 MB; name a config file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: not UTF-8 text (line {line}); save it as UTF-8") from None
    return read_text(text, str(path))


def read_text(text: str, source: str, key: str = "") -> Any:
    """The value of one YAML document.

    Args:
        source: what messages call it.
        key: of the setting whose value it is; nothing for a whole file.

    Raises:
        UserError: as :func:`read_file`.
    """
    try:
        _check_events(text, source)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            problems: list[str] = []
            value = None if node is None else _value(loader, node, key, problems)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        complaint = _complaint(error)
        # An override has no lines.
        complaint = re.sub(r" \(line \d+\)", "", complaint) if key else complaint
        raise UserError(f"{source}: {complaint}") from None
    if len(problems) == 1 and key:
        raise UserError(problems[0].replace(" (line 1)", ""))
    if len(problems) == 1:
        raise UserError(f"{source}: {problems[0]}")
    if problems:
        count = f"{len(problems)} problems"
        raise UserError(f"{source}: {count}\n" + "\n".join(f"  {p}" for p in problems))
    return value


def text_problem(text: str) -> str | None:
    """Why ``text`` is no valid name or setting; None if it is valid."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


def _check_events(text: str, source: str) -> None:
    """Walk through the document without building it: tags, depth, and what aliases add up to."""
    sizes: dict[str, int] = {}
    for event, open_anchors, size in _sized_events(text, sizes):
        line = event.start_mark.line + 1
        tag = getattr(event, "tag", None)
        if tag and tag not in PLAIN:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise UserError(f"{source}: tag {shown} (line {line}); write a plain value")
        if isinstance(event, yaml.AliasEvent) and event.anchor in open_anchors:
            raise UserError(
                f"{source}: *{event.anchor} (line {line}) contains itself; remove the alias"
            )
        if len(open_anchors) > DEEPEST:
            raise UserError(
                f"{source}: more than {DEEPEST} levels of nesting (line {line}); flatten it"
            )
        if size > MOST_VALUES:
            raise UserError(f"{source}: more than {MOST_VALUES} values (line {line}); shorten it")


def _sized_events(
    text: str, sizes: dict[str, int]
) -> Iterator[tuple[yaml.Event, list[str | None], int]]:
    """Every event with the anchors of the collections it stands in, and the values so far."""
    anchors: list[str | None] = []
    starts: list[int] = []
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            starts.append(total)
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, start = anchors.pop(), starts.pop()
            if anchor:
                sizes[anchor] = total + 1 - start
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        if isinstance(event, yaml.NodeEvent):
            total += sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        yield event, anchors, total


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: str, problems: list[str]) -> Any:
    """The value of a node; what is wrong with it is added to ``problems``."""
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(loader, item, _join_path(path, number), problems)
            for number, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, problems)
    if node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
        problems.append(f"{path}: {shortened(node.value)} is larger than any setting{_line(node)}")
        return 0
    try:
        value = loader.construct_object(node)
    except (ValueError, LookupError):  # `!!bool 5`, `!!int x`
        kind = node.tag.rsplit(":", 1)[-1]
        problems.append(
            f"{path or 'the value'}: {shortened(node.value)} is not of type {kind}{_line(node)}"
        )
        return None
    if reason := _scalar_problem(value):
        problems.append(f"{path or 'the value'}: {shortened(node.value)} {reason}{_line(node)}")
    return value


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: str, problems: list[str]
) -> dict[str, Any]:
    keys: set[str] = set()
    for key, _ in node.value:
        if key.tag.endswith(":merge"):
            continue
        name = shortened(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        place = f"{path}: " if path else ""
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            problems.append(f"{place}key {name} is not text{_line(key)}; quote it")
        elif key.value in keys:
            problems.append(f"{place}duplicate key {name}{_line(key)}; remove one")
        elif reason := text_problem(key.value):
            problems.append(f"{place}key {name!r} {reason}{_line(key)}")
        keys.add(str(key.value))
    if any(not isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        return {}
    # What `<<` brings in stands first: the mapping's own keys win.
    loader.flatten_mapping(node)
    return {
        key.value: _value(loader, value, _join_path(path, key.value), problems)
        for key, value in node.value
    }


def _scalar_problem(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "is larger than any setting"
    return text_problem(value) if isinstance(value, str) else None


def _join_path(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _line(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})"


def _complaint(error: Exception) -> str:
    """A parser's complaint on one line, with its line and a remedy."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    ours = next((ours for theirs, ours in COMPLAINTS.items() if theirs in text), None)
    reason, remedy = ours or (f"not YAML: {shortened(text, 200)}", "correct it, or quote the value")
    return f"{reason}{f' (line {mark.line + 1})' if mark else ''}; {remedy}"

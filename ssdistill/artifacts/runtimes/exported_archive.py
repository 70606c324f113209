"""Checks of an exported program's archive: opening it must execute no code.

PyTorch's reader of ``.pt2`` archives unpickles some members, evaluates some strings, imports
modules that others name, loads native libraries, and falls back to layouts of earlier versions
which are pickles altogether. Here the members that a program written by this package has are
checked one by one and copied to a fresh archive; PyTorch sees nothing but that copy.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError, shortened

WORDS = frozenset(
    ("Symbol", "positive", "integer", "nonnegative", "True", "False", "FloorDiv", "Where", "Mod",
     "PythonMod", "ModularIndexing", "CleanDiv", "CeilToInt", "FloorToInt", "IntTrueDiv",
     "FloatTrueDiv", "Max", "Min", "ceiling", "floor")
)  # fmt: skip
"""What an expression for a size may name, beside symbols such as ``s77``."""
LONGEST_EXPRESSION = 2000
PROGRAM = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
TENSORS = re.compile(r"data/(weights/weight_|constants/tensor_)\d{1,6}")
PLAIN = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"\d+"),
    "byteorder": re.compile(rb"little"),
    ".data/version": re.compile(rb"\d+\n?"),
    ".data/serialization_id": re.compile(rb"\d*"),
    ".format_version": re.compile(rb"\d+"),
    ".storage_alignment": re.compile(rb"\d+"),
    "data/sample_inputs/model.pt": re.compile(rb""),
}
"""Members that are not JSON, and all that they may hold."""
OPERATORS = re.compile(
    r"torch\.ops\.(aten|quantized_decomposed|torchao)\.([^\W_]|_(?!_)|__(and|or|xor)__)\w*(\.\w+)?"
    r"|torch\.ops\.higher_order\.(wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|torch\.(sym_\w+|_sym_sqrt)"
    r"|_operator\.(getitem|add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
FILE_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|save|_print|warn)\b")
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
"""Types of inputs and outputs whose description is plain; others name modules to import."""


def checked_archive(path: Path) -> io.BytesIO:
    """Copy an exported program after checking that ``torch.export.load`` runs no code of it.

    Raises:
        UserError: no zip, a damaged one, or one with anything in it that would be run, imported
            or unpickled as it is opened.
        zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RecursionError: no such
            archive at all.
    """
    copy, size = io.BytesIO(), path.stat().st_size
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as checked:
        members = archive.infolist()
        check_sizes(path, members, size)
        root = members[0].filename.partition("/")[0] if members else ""
        seen: set[str] = set()
        for member in members:
            first, _, name = member.filename.partition("/")
            if first != root or not name or name in seen:
                raise _refused(path, f"'{member.filename}'")
            seen.add(name)
            content = archive.read(member)
            if unsafe_part := _what_would_run(name, content):
                raise _refused(path, unsafe_part)
            checked.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    if PROGRAM not in seen or "archive_format" not in seen:
        raise UserError(
            f"PyTorch cannot open {path}: not a torch.export program of PyTorch 2.8 or newer; "
            "export the model again"
        )
    copy.seek(0)
    return copy


def check_sizes(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    """Reject members that declare a larger size than the file can hold.

    Raises:
        UserError: of compressed members too, which no program that writes such files has.
    """
    for member in members:
        packed = member.compress_type != zipfile.ZIP_STORED
        if packed or member.file_size > size or member.flag_bits & 1:
            why = "is compressed or encrypted" if packed or member.flag_bits & 1 else (
                f"declares {member.file_size} bytes in a file of {size}"
            )  # fmt: skip
            raise UserError(
                f"refused to open {path}: '{shortened(member.filename)}' {why}; export the model "
                "again"
            )
    if sum(member.file_size for member in members) > size:
        raise UserError(
            f"refused to open {path}: its members declare more bytes than the file can hold; "
            "export the model again"
        )


def _refused(path: Path, unsafe_part: str) -> UserError:
    return UserError(
        f"refused to open {path}: {shortened(unsafe_part, 120)} would be executed on opening; "
        "export the "
        "model again with ssdistill"
    )


def _what_would_run(name: str, content: bytes) -> str:
    """First part of a member that would execute code; empty if there is none."""
    if name in PLAIN:
        return "" if PLAIN[name].fullmatch(content) else f"'{name}'"
    if TENSORS.fullmatch(name):
        return ""
    if name == PROGRAM or name in CONFIGS:
        return next(_evaluated(json.loads(content)), "")
    return f"'{name}'"


def _evaluated(value: Any) -> Iterator[str]:
    """Find what the reader would unpickle, evaluate or import in a JSON value."""
    if isinstance(value, list):
        for part in value:
            yield from _evaluated(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            check = CHECKS.get(key)
            if check is None:
                yield from _evaluated(part)
            elif unsafe_part := check(part):
                yield unsafe_part


def _pickled(value: Any) -> str:
    return "" if value is False else "a pickled tensor"


def _payload(value: Any) -> str:
    plain = isinstance(value, str) and TENSORS.fullmatch(f"data/weights/{value}")
    plain = plain or (isinstance(value, str) and TENSORS.fullmatch(f"data/constants/{value}"))
    return "" if plain else f"the payload '{value!r:.80}'"


def _guard_text(value: Any) -> str:
    return f"the guard '{value!r:.80}'" if value else ""


def _expressions(value: Any) -> str:
    expressions = value if isinstance(value, dict) else [value]
    return next((f"the expression '{e!r:.80}'" for e in expressions if not harmless(e)), "")


def _operator(value: Any) -> str:
    is_known = isinstance(value, str) and OPERATORS.fullmatch(value)
    harmful = is_known and FILE_OPERATORS.match(value)
    return "" if is_known and not harmful else f"the operator '{value!r:.80}'"


def _metadata(value: Any) -> str:
    plain = isinstance(value, dict) and not value.keys() - {"stack_trace"}
    return "" if plain else "metadata naming classes"


def _object(value: Any) -> str:
    return "" if value is None else "a class instance"


def _tree(value: Any) -> str:
    if value in (None, ""):
        return ""
    try:
        return "" if _is_plain_tree(json.loads(value)[1]) else f"the type in {value!r:.80}"
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        return f"the type in {value!r:.80}"


def _is_plain_tree(tree: dict[str, Any]) -> bool:
    kind, context = tree["type"], tree["context"]
    # Of a dict the context are its keys; objects in it may name a module to import.
    plain = context is None or (isinstance(context, str) and "{" not in context)
    return kind in CONTAINERS and plain and all(map(_is_plain_tree, tree["children_spec"]))


CHECKS = {
    "use_pickle": _pickled,
    "path_name": _payload,
    "guards_code": _guard_text,
    "expr_str": _expressions,
    "range_constraints": _expressions,
    "target": _operator,
    "metadata": _metadata,
    "treespec_namedtuple_fields": _guard_text,
    "as_custom_obj": _object,
    "as_operator": _object,
    "in_spec": _tree,
    "out_spec": _tree,
}
"""What keys of the JSON may hold, wherever they are."""


def harmless(expression: Any) -> bool:
    """Whether an expression for a size names nothing but symbols and arithmetic."""
    if not isinstance(expression, str) or len(expression) > LONGEST_EXPRESSION:
        return False
    # Towers of powers and numbers of any length would be worked out for hours.
    powerless = re.sub(r"\b[su]\d+ ?\*\* ?\d\b(?! ?\*\*)", "", expression)
    if "__" in expression or "**" in powerless or re.search(r"\d{20}", expression):
        return False
    bare = re.sub(r"Symbol\('[su]\d+'", "Symbol('", expression)
    words = re.findall(r"[^\W\d]\w*", bare)
    return all(word in WORDS or re.fullmatch(r"[su]\d+", word) for word in words)

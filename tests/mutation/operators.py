"""Small, typical faults: every place in a source file where one can be made, as a text edit."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
}
CALLS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sum": "mean",
    "mean": "sum",
    "floor": "ceil",
    "ceil": "floor",
    "sorted": "list",
    "argmax": "argmin",
    "argmin": "argmax",
    "cos": "sin",
    "amax": "amin",
    "amin": "amax",
}
"""A called name and the one to call instead."""
DROPPED = frozenset((
    *("abs", "clamp", "clamp_", "contiguous", "detach", "eval", "float", "flip", "round", "sort"),
    *("sqrt", "square", "squeeze", "t", "train", "transpose", "lower", "strip", "resolve"),
))  # fmt: skip
"""Methods whose call can be removed: ``x.detach()`` becomes ``x``."""
AXES = frozenset({"dim", "axis"})


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Attributes:
        file: path of the source, relative to the tree.
        line: first line of the place, from 1.
        start, end: offsets of the place in the file's text.
        before, after: what stands there and what is put there instead.
        operator: name of the kind of fault.
        scope: the function or class around it, dotted; ``""`` at module level.
        nth: number, from 0, among equal changes in the scope.
    """

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str
    operator: str
    scope: str = ""
    nth: int = 0

    def applied(self, text: str) -> str:
        """The file's text with the fault in it."""
        assert text[self.start : self.end] == self.before, f"{self.file}: not the text it was"
        return text[: self.start] + self.after + text[self.end :]


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Every mutant of one file, in the order of the text; some may be no valid Python."""
    found = {(m.start, m.end, m.after): m for m in _Finder(file, text).search()}
    ordered = sorted(found.values(), key=lambda m: (m.start, m.end, m.after))
    alike: Counter[tuple[str, ...]] = Counter()
    numbered = []
    for mutant in ordered:
        change = mutant.scope, mutant.operator, mutant.before, mutant.after
        numbered.append(replace(mutant, nth=alike[change]))
        alike[change] += 1
    return numbered


def parses(text: str) -> bool:
    """Whether a text is valid Python."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, file: str, text: str):
        self.file, self.text = file, text
        self.tree = ast.parse(text)
        # ast counts columns in bytes, the edits count characters.
        self.lines = text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

        self.defaults = {id(n) for value in _defaults(self.tree) for n in ast.walk(value)}

    def search(self) -> Iterator[Mutant]:
        yield from self._walk(self.tree, "")

    def _walk(self, node: ast.AST, scope: str) -> Iterator[Mutant]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Raise) or _is_annotation(node, child):
                continue
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
            for start, end, after, operator in self._edits(child):
                line = self.text.count("\n", 0, start) + 1
                before = self.text[start:end]
                if before != after:
                    yield Mutant(self.file, line, start, end, before, after, operator, inner)
            yield from self._walk(child, inner)

    def _edits(self, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is not None:
            for start, end, after, operator in method(node):
                named = operator == "constant" and id(node) in self.defaults
                yield start, end, after, "default" if named else operator

    def _offset(self, line: int, column: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.AST) -> tuple[int, int]:
        end = self._offset(node.end_lineno, node.end_col_offset)
        return self._offset(node.lineno, node.col_offset), end

    def _source(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.text[start:end]

    def _between(self, left: ast.AST, right: ast.AST, symbol: str) -> tuple[int, int] | None:
        """Where the operator between two operands stands; None if it stands more than once."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self.text[start:end]
        if gap.count(symbol) != 1:
            return None
        at = start + gap.index(symbol)
        return at, at + len(symbol)

    def _compare(self, node: ast.Compare):
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            symbol, other = COMPARISONS[type(operator)]
            if place := self._between(left, right, symbol):
                yield *place, other, "comparison"

    def _binop(self, node: ast.BinOp):
        start, end = self._span(node)
        if isinstance(node.op, ast.BitOr) and not _is_type(node):
            yield start, end, self._source(node.left), "dropped operand"
        if type(node.op) not in ARITHMETIC or isinstance(node.left, ast.JoinedStr):
            return
        symbol, other = ARITHMETIC[type(node.op)]
        if place := self._between(node.left, node.right, symbol):
            yield *place, other, "arithmetic"

    def _boolop(self, node: ast.BoolOp):
        symbol, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        if place := self._between(*node.values[:2], symbol):
            yield *place, other, "boolean"

    def _unaryop(self, node: ast.UnaryOp):
        if isinstance(node.op, ast.Not):
            yield *self._span(node), self._source(node.operand), "removed not"

    def _constant(self, node: ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield *self._span(node), str(not value), "constant"
        elif isinstance(value, int):
            yield *self._span(node), str(value + 1), "constant"
        elif isinstance(value, float):
            yield *self._span(node), repr(value * 2 or 0.5), "constant"

    def _expr(self, node: ast.Expr):
        if isinstance(node.value, ast.Call | ast.Yield | ast.YieldFrom):
            yield *self._span(node), "pass", "dropped statement"

    def _augassign(self, node: ast.AugAssign):
        yield *self._span(node), "pass", "dropped statement"

    def _if(self, node: ast.If):
        guards = ast.Raise | ast.Continue | ast.Return
        operator = "removed guard" if isinstance(node.body[-1], guards) else "removed branch"
        yield *self._span(node.test), "False", operator
        yield *self._span(node.test), "True", "forced branch"

    def _ifexp(self, node: ast.IfExp):
        yield *self._span(node), self._source(node.body), "removed branch"
        yield *self._span(node), self._source(node.orelse), "removed branch"

    def _call(self, node: ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
            yield *self._span(node), self._source(node.func.value), "dropped call"
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in CALLS:
            end = self._span(node.func)[1]
            yield end - len(name), end, CALLS[name], "other call"
        plain = [arg for arg in node.args[:2] if not isinstance(arg, ast.Starred)]
        if len(plain) == 2 and name not in ("isinstance", "issubclass", "getattr", "hasattr"):
            first, second = (self._source(arg) for arg in plain)
            gap = self.text[self._span(plain[0])[1] : self._span(plain[1])[0]]
            span = self._span(plain[0])[0], self._span(plain[1])[1]
            yield *span, second + gap + first, "swapped arguments"
        for keyword in node.keywords:
            yield from self._keyword_of(node, keyword)

    def _keyword_of(self, call: ast.Call, keyword: ast.keyword):
        if keyword.arg is None:
            return
        start, end = self._span(keyword)
        tail = self.text[end : self._span(call)[1]]
        comma = tail.index(",") + 1 if tail.lstrip().startswith(",") else 0
        yield start, end + comma, "", "dropped argument"
        if keyword.arg in AXES and isinstance(keyword.value, ast.Constant | ast.UnaryOp):
            other = "1" if self._source(keyword.value) in ("0", "-1") else "0"
            yield *self._span(keyword.value), other, "wrong axis"

    def _slice(self, node: ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield *self._span(bound), "", "open slice"


def _defaults(tree: ast.Module) -> Iterator[ast.AST]:
    """Defaults of arguments and of settings, and named constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            yield from (value for value in (*node.defaults, *node.kw_defaults) if value)
        if isinstance(node, ast.Module | ast.ClassDef):
            named = (n for n in node.body if isinstance(n, ast.Assign | ast.AnnAssign))
            yield from (n.value for n in named if n.value is not None)


def _is_annotation(node: ast.AST, child: ast.AST) -> bool:
    return child in (getattr(node, "annotation", None), getattr(node, "returns", None))


def _is_type(node: ast.BinOp) -> bool:
    """Whether ``a | b`` is a union of types and not one of mappings or sets."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    types = {"int", "str", "float", "bool", "Tensor", "Path", "bytes", "Any", "dict", "list"}
    nothing = any(isinstance(n, ast.Constant) and n.value is None for n in ast.walk(node))
    return nothing or bool(names & types) or all(name[:1].isupper() for name in names)

"""One word for one thing: words that ``docs/vocabulary.md`` retires are gone."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    RUNTIMES,
    SOURCES,
    STEPS,
    TEACHERS,
)

ROOT = Path(__file__).parents[2]
VOCABULARY = ROOT / "docs" / "vocabulary.md"
SOURCES_OF_TEXT = sorted(
    [
        *(ROOT / "ssdistill").rglob("*.py"),
        *(ROOT / "ssdistill").rglob("*.html"),
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").rglob("*.md"),
        *(ROOT / "experiments").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.yaml"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / ".ci").glob("*.py"),
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
)
OLD_ON_PURPOSE = {
    "docs/vocabulary.md",
    "ssdistill/moved/names.py",
    "ssdistill/experiment/renamed_keys.py",
    "tests/contract/test_vocabulary.py",
    "tests/contract/test_moved.py",
}
"""Files that are about old names."""
ON_DISK = re.compile(
    r"gauge_images|gauged_features\.npy|\"pictures\"|\|pictures\)|\"digest\"|\bdigest:|\.digest\b"
)
"""What is written as before: hashed keys, a file of a stage, names of folders that users have."""
KINDS_AND_KEYS = {"share", "Share"}
"""A compression step, and the key of a budget in records."""
OF_PAPERS = {"BarlowTwins", "barlow_twins"}
"""Names of methods."""
IN_CHECKPOINTS = {"normaliser", "standardise"}
"""Buffers and modules of losses, by which checkpoints of interrupted runs are read."""
EXCEPTIONS = KINDS_AND_KEYS | OF_PAPERS | IN_CHECKPOINTS


def rows() -> list[list[str]]:
    """The rows of the first table, which alone has four columns."""
    lines = VOCABULARY.read_text().splitlines()
    return [cells for line in lines if len(cells := line.split("|")[1:-1]) == 4][2:]


def retired(column: int) -> set[str]:
    return {word.strip() for row in rows() for word in row[column].split(",")} - {""}


def instead(names: set[str]) -> str:
    """What ``docs/vocabulary.md`` says instead of the words in ``names``."""
    words = set().union(*map(words_of, names))
    found = [row for row in rows() if words & {word.strip() for word in row[2].split(",")}]
    return "docs/vocabulary.md calls it " + ", ".join(row[1].strip() for row in found)


def words_of(name: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def public_names(tree: ast.AST) -> set[str]:
    """Classes, functions, their arguments, and assigned names that do not begin with ``_``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            names.add(node.name)
        if isinstance(node, ast.FunctionDef) and re.match(r"__init__$|[^_]", node.name):
            arguments = node.args
            names |= {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(statement for c in classes for statement in c.body)]:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.id for t in targets if isinstance(t, ast.Name) and t.id[0] != "_"}
    return names


def test_a_failure_says_which_word_to_take():
    assert instead({"shares_svg", "dots"}).startswith("docs/vocabulary.md calls it fraction;")


def test_the_page_retires_words():
    assert {"picture", "gauge", "neighbour", "judge"} <= retired(2)
    assert {"picture", "gauge", "must be given"} <= retired(3)
    assert not [row for row in rows() if not (row[2] + row[3]).strip()]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "ssdistill").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_public_names_use_words_of_the_vocabulary(file):
    if str(file.relative_to(ROOT)) in OLD_ON_PURPOSE:
        return
    names = public_names(ast.parse(file.read_text())) | {file.stem}
    found = {name for name in names - EXCEPTIONS if words_of(name) & retired(2)}
    assert not found, f"rename {found}: {instead(found)}"


@pytest.mark.parametrize(
    "registry",
    [LOSSES, METHODS, PROTOCOLS, RUNTIMES, SOURCES, STEPS, TEACHERS],
    ids=lambda r: r.noun,
)
def test_kinds_and_keys_use_words_of_the_vocabulary(registry):
    keys = {k for kind in registry.classes for k in registry.schema(kind).model_fields}
    names = {*registry.classes, *keys} - EXCEPTIONS
    assert names
    found = {name for name in names if words_of(name) & retired(2)}
    assert not found, f"rename {found}: {instead(found)}"


def docstrings(text: str) -> list[str]:
    """The strings of a module that are statements of their own."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    values = [node.value.value for node in nodes if isinstance(node.value, ast.Constant)]
    return [value for value in values if isinstance(value, str)]


def comments(text: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def sentences(file: Path) -> str:
    """Comments and strings of a Python file; the text of other files without their code.

    Of tests, strings are data unless they are docstrings.
    """
    text = file.read_text()
    if file.suffix != ".py":
        return re.sub(r"`[^`]*`", "", text)
    if file.is_relative_to(ROOT / "tests"):
        return re.sub(r"``[^`]*``", "", "\n".join([*docstrings(text), *comments(text)]))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    return re.sub(r"``[^`]*``", "", "\n".join(t.string for t in tokens if t.type in kinds))


def test_texts_of_configs_pages_experiments_and_tests_are_read():
    read = {(file.relative_to(ROOT).parts[0], file.suffix) for file in SOURCES_OF_TEXT}
    ours = {("configs", ".yaml"), ("ssdistill", ".html"), ("experiments", ".py"), ("tests", ".py")}
    assert ours <= read
    said = sentences(ROOT / "tests" / "contract" / "test_vocabulary.py")
    assert "Names of methods." in said and "BarlowTwins" not in said
    assert "deviations" in sentences(ROOT / "configs" / "base" / "pretrain_cifar10.yaml")


@pytest.mark.parametrize("file", SOURCES_OF_TEXT, ids=lambda p: str(p.relative_to(ROOT)))
def test_sentences_use_words_of_the_vocabulary(file):
    if str(file.relative_to(ROOT)) in OLD_ON_PURPOSE:
        return
    text = ON_DISK.sub("", sentences(file))
    for word in IN_CHECKPOINTS:
        text = text.replace(f'"{word}"', "")
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(retired(3))))})\b", re.IGNORECASE)
    found = [line for line in text.splitlines() if pattern.search(line)]
    assert not found, f"docs/vocabulary.md has a word for this: {found}"

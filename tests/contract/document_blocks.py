"""Find code in the project's documents, its location and markers, and check that it is valid.

A comment on the line before a block marks it; a reader of the page does not see it::

    <!-- needs: data, network -->     it is not run, for want of what it names; it is parsed
    <!-- over: base/small_resnets --> a piece of YAML laid over another config than quickstart

A block without ``needs`` is run. Blocks of ``text`` are drawings.
"""

import ast
import configparser
import importlib
import re
import shlex
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ssdistill.commands import main as cli
from ssdistill.experiment.reading import load_experiment

ROOT = Path(__file__).parents[2]
FOLDER = tempfile.TemporaryDirectory(prefix="ssdistill-blocks-")
"""Of the configs that are pieces of documents; removed at the end of the process."""
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)\n```$", re.M | re.S)
MARKER = re.compile(r"<!-- (?P<key>\w+): (?P<value>.*?) -->")
NEEDS = {"data", "network", "gpu", "cluster", "hours", "package", "notebook"}
LANGUAGES = {"sh": "sh", "bash": "sh", "python": "python", "yaml": "yaml", "text": "text"}
INLINE = re.compile(r"`((?:ssdistill|make) [^`]+)`")
NO_CONFIG = {"x.yaml", "…", "shape_kit/config.yaml"}
"""Names in prose that stand for any config, and the one that the tutorial writes."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        file, line: where it begins.
        language: of :data:`LANGUAGES`, or what it says where that is none of them.
        needs: what a run of it would want; over: the config that YAML is laid over.
    """

    file: str
    line: int
    language: str
    code: str
    needs: frozenset[str] = frozenset()
    over: str = "quickstart"
    faults: tuple[str, ...] = field(default=())

    @property
    def runs(self) -> bool:
        return not self.needs and self.language != "text"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def documents() -> list[Path]:
    """Every page of the project that a reader may copy from."""
    patterns = ("*.md", "docs/**/*.md", "experiments/*/README.md")
    return sorted({file for pattern in patterns for file in ROOT.glob(pattern)})


def blocks(text: str, file: str = "") -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(f"\n{text}"):
        marks, faults = _marks(match["before"])
        needs = frozenset(filter(None, re.split(r",\s*", marks.get("needs", ""))))
        faults += [f"'{name}' is nothing to need" for name in sorted(needs - NEEDS)]
        language = LANGUAGES.get(match["language"], match["language"])
        if language not in LANGUAGES:
            faults.append(f"'{language}' is no language of a block: {', '.join(LANGUAGES)}")
        line = text[: match.start("language")].count("\n") + 1
        over = marks.get("over", "quickstart")
        found.append(Block(file, line, language, match["code"], needs, over, tuple(faults)))
    return found


def _marks(line: str) -> tuple[dict[str, str], list[str]]:
    if not line.startswith("<!--") or "results:" in line:
        return {}, []
    marks = {m["key"]: m["value"] for m in MARKER.finditer(line)}
    unknown = [key for key in marks if key not in ("needs", "over")]
    faults = [f"'{line}' is no marker"] if unknown or not marks else []
    return marks, faults


def commands(code: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def inline_commands(text: str) -> list[str]:
    """Commands that stand in a sentence."""
    prose = FENCE.sub(lambda match: match["before"], f"\n{text}")
    return [" ".join(found.split()) for found in INLINE.findall(prose)]


def check(block: Block) -> None:
    """Parse a block with what would read it; raises whatever that does."""
    assert not block.faults, block.faults
    if block.language == "sh":
        for words in commands(block.code):
            check_command(words, resolve="package" not in block.needs)
    elif block.language == "yaml" and "package" in block.needs:
        yaml.safe_load(block.code)
    elif block.language == "python":
        check_python(block.code)
    elif block.language == "yaml":
        for text in alternatives(block.code):
            load_experiment(config_of(text, block.over))


def check_command(words: list[str], resolve: bool = True) -> None:
    """Parse a command with the real parser, its config with the real schema.

    Args:
        resolve: whether a config must exist; in a sentence its name may stand for any.
    """
    program, *rest = words
    if program == "ssdistill" and len(rest) == 1 and not resolve:
        assert rest[0] in {
            "data",
            "run",
            "reproduce",
            "probe",
            "embed",
            "report",
            "restore",
            "list",
            "benchmark",
            "new",
        }, rest
    elif program == "ssdistill":
        _check_ssdistill(cli._parse(rest), resolve)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), f"no such target: {rest}"
    elif program in ("pytest", "source") or words[:2] == ["python", "small_shapes.py"]:
        pass  # of the tutorial, whose test runs them
    elif words[:3] == ["python", "-m", "venv"]:
        pass
    elif program == "python":
        script = ROOT / rest[0]
        unknown = {w for w in rest[1:] if w.startswith("--")} - options_of(script)
        assert not unknown, f"{script} knows no {unknown}"
    elif program == "wandb":
        from wandb.cli.cli import cli as wandb

        assert rest[0] in wandb.commands, f"wandb has no command '{rest[0]}'"
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in rest), rest
    elif program == "srun":
        started = next(i for i, word in enumerate(rest) if word[0] != "-")
        check_command([re.sub(r"\$\w+", "1", word) for word in rest[started:]], resolve)
    elif [program, *rest[:1]] == ["pip", "install"]:
        _check_extras(rest[-1])
    else:
        raise AssertionError(f"nothing can check '{program}'")


def _check_ssdistill(options: Namespace, resolve: bool) -> None:
    from ssdistill.commands.benchmark import config_and_overrides
    from ssdistill.commands.listing import description, listings
    from ssdistill.commands.probe.arguments import parse_words
    from ssdistill.commands.probe.command import _is_setting
    from ssdistill.evaluate.comparing.requested import ask

    named = vars(options)
    if "config" in named and (resolve or named["config"] not in NO_CONFIG):
        load_experiment(options.config, options.overrides)
    if "against" in named:
        load_experiment(*config_and_overrides(options.words))
    if "protocols" in named:
        assert options.data or any(w.startswith("data.kind=") for w in options.words)
        settings = parse_words(filter(_is_setting, options.words))
        settings.pop("data", None)
        ask(options.protocols.split(",") if options.protocols else None, settings)
    if "what" in named and options.kind and options.kind != "KIND" and resolve:
        description(options.what, options.kind)
    elif "what" in named:
        listings(options.what)


def _check_extras(requirement: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.findall(r"\[([\w,-]+)\]", requirement)
    named = {name for extra in extras for name in extra.split(",")}
    assert named <= set(setup["options.extras_require"]), f"no such extras: {named}"


def options_of(script: Path) -> set[str]:
    """Options that a script adds to its parser, and those of the parser it starts from."""
    tree = ast.parse(script.read_text())
    own = _added(tree)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    for call in calls:
        if getattr(call.func, "id", "") == "arguments":
            shared = _added(ast.parse((script.parent / "measuring.py").read_text()))
            timed = any(keyword.arg == "seconds" for keyword in call.keywords)
            own |= shared if timed else shared - {"--seconds"}
    return own


def _added(tree: ast.AST) -> set[str]:
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "add_argument"
        and isinstance(node.args[0], ast.Constant)
    }


def check_python(code: str) -> None:
    """Compile it, and find every name that it imports from the package."""
    tree = ast.parse(code)
    compile(tree, "block", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ssdistill":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def alternatives(code: str) -> list[str]:
    """A piece of YAML, and what it is with each line ``# key: …`` in the place of that key."""
    lines = code.splitlines()
    texts = [code]
    for line in lines:
        if other := re.match(r"# ((\w+): .*)", line):
            kept = [own for own in lines if not re.match(rf"(# )?{other[2]}:|# ", own)]
            texts.append("\n".join([*kept, other[1]]))
    return texts


def config_of(text: str, over: str) -> Path:
    """A whole config as it stands, a piece of one laid over another; in a file of its own."""
    content = yaml.safe_load(text)
    if "schema" not in content:
        text = f"extends: {ROOT / 'configs' / over}.yaml\nschema: 1\nname: piece\n{text}"
    elif "extends" in content:
        text = text.replace(content["extends"], str(ROOT / "configs" / content["extends"]), 1)
    path = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "block.yaml"
    path.write_text(text)
    return path

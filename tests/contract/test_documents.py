"""Every code block in the documents is run, or marked and parsed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from document_blocks import (
    ROOT,
    alternatives,
    blocks,
    check,
    check_command,
    documents,
    inline_commands,
    options_of,
)

import ssdistill
from ssdistill.errors import UserError

BLOCKS = [
    block for file in documents() for block in blocks(file.read_text(), str(file.relative_to(ROOT)))
]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Paths in documents are those of the project."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_marked_rightly_and_understood_by_what_reads_it(block):
    check(block)


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_in_a_sentence_is_understood(file):
    for command in inline_commands(file.read_text()):
        check_command(command.split(), resolve=False)


def test_every_block_that_needs_nothing_runs_in_a_process_of_its_own(tmp_path):
    # The slowest of these tests, most of a minute: one tiny run and every block, in one process.
    runner = Path(__file__).with_name("document_runner.py")
    paths = [str(runner.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(runner)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert len(ran) == sum(block.runs for block in BLOCKS)
    assert {line.rsplit(" ", 1)[1] for line in ran} == {"(sh)", "(python)", "(yaml)"}


def one(text):
    (block,) = blocks(text)
    return block


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```sh\nssdistill rn quickstart\n```", SystemExit),
        ("```sh\nssdistill run quickstart --nonsense\n```", SystemExit),
        ("```sh\nssdistill run quickstart pretrain.kind=bjol\n```", UserError),
        ("```sh\nssdistill run quickstrt\n```", UserError),
        ("```sh\nssdistill probe student/\n```", AssertionError),
        ("```sh\nssdistill probe student/ --data digits --protocols liner\n```", UserError),
        ("```sh\nssdistill list loses\n```", UserError),
        ("```sh\nssdistill list losses sed\n```", UserError),
        ("```sh\nmake quickstrt\n```", AssertionError),
        ("```sh\npip install 'ssdistill[opnvino]'\n```", AssertionError),
        ("```sh\npython experiments/benchmarks/knn.py --seconds 3\n```", AssertionError),
        ("```sh\ncurl example.com\n```", AssertionError),
        ("```yaml\ndistil: {steps: 3}\n```", UserError),
        ("```yaml\nteacher: {kind: tim, name: x}\n```", UserError),
        ("```yaml\nteacher: {kind: timm, name: x}\n# teacher: {kind: torchvison}\n```", UserError),
        ("```python\nfrom ssdistill.losses import Lozz\n```", AssertionError),
        ("```python\nfor x in\n```", SyntaxError),
        ("```\ntext\n```", AssertionError),
        ("```rust\nfn main() {}\n```", AssertionError),
        ("<!-- needs: patience -->\n```text\na\n```", AssertionError),
        ("<!-- need: data -->\n```text\na\n```", AssertionError),
    ],
)
def test_a_block_that_could_not_be_typed_fails(text, error):
    with pytest.raises(error):
        check(one(text))


def test_markers_and_places_are_read():
    text = (
        "# Title\n\n<!-- needs: data, network -->\n```sh\nmake test\n```\n\nText\n```text\nx\n```\n"
    )
    first, second = blocks(text, "a.md")
    assert (str(first), first.needs, first.runs) == ("a.md:4", {"data", "network"}, False)
    assert (str(second), second.language, second.runs) == ("a.md:9", "text", False)
    assert one("```bash\nmake test\n```").runs


def test_commented_alternatives_take_the_place_of_their_key():
    text = "teacher: {a: 1}  # note\n# teacher: {a: 2}\n# teacher: {a: 3}\nseeds: [0]"
    others = [sorted(other.splitlines()) for other in alternatives(text)[1:]]
    assert others == [["seeds: [0]", f"teacher: {{a: {n}}}"] for n in (2, 3)]


def test_options_are_those_of_the_script_and_of_the_parser_it_shares():
    folder = ROOT / "experiments/benchmarks"
    assert {"--bank", "--npz", "--out"} <= options_of(folder / "knn.py")
    assert "--seconds" not in options_of(folder / "knn.py")
    assert "--seconds" in options_of(folder / "training.py")
    assert "--npz" not in options_of(folder / "probe_memory.py")


def test_commands_in_sentences_may_be_broken_over_lines():
    text = "Say `ssdistill report\n--check`, not `ssdistill`.\n```sh\n`make x`\n```\n"
    assert inline_commands(text) == ["ssdistill report --check"]


def test_modules_are_attributes_of_the_package_without_an_import():
    code = (
        "import sys, ssdistill; assert 'torch' not in sys.modules and 'rich' not in sys.modules; "
        "assert 'evaluate' in dir(ssdistill); assert callable(ssdistill.evaluate.linear); "
        "from ssdistill import losses; assert losses is ssdistill.losses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = ssdistill.evalute
    assert {"evaluate", "load", "losses", "run"} <= set(dir(ssdistill))
    assert not [name for name in dir(ssdistill) if name in ("os", "pkgutil", "Any")]

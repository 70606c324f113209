"""Mutation testing itself: its edits, its draw, its record."""

import subprocess
from pathlib import Path

import pytest
from operators import mutants_of, parses
from record import first_table, key_of, marked, table
from run import files_of_tests
from runner import COPIED, COPIED_FILES, Outcome
from sampling import choose, room_of

SOURCE = '''"""Text with ä and ×."""
RATE = 0.5


class Thing:
    size: int = 3

    def act(self, x, y, *, deep: bool = True) -> int | None:
        if not x:
            raise ValueError(f"no {x + 1}")
        self.note(x, y)
        total = x.detach() + self.half(y, dim=1)
        return total if x < y else max(x, y)[1:]
'''


def made():
    return mutants_of("ssdistill/chain/thing.py", SOURCE)


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        ("default", "0.5", "1.0"),
        ("default", "3", "4"),
        ("default", "True", "False"),
        ("removed guard", "not x", "False"),
        ("removed not", "not x", "x"),
        ("dropped statement", "self.note(x, y)", "pass"),
        ("swapped arguments", "x, y", "y, x"),
        ("dropped call", "x.detach()", "x"),
        ("arithmetic", "+", "-"),
        ("wrong axis", "1", "0"),
        ("dropped argument", "dim=1", ""),
        ("comparison", "<", "<="),
        ("other call", "max", "min"),
        ("open slice", "1", ""),
        ("removed branch", "total if x < y else max(x, y)[1:]", "total"),
    ],
)
def test_every_kind_of_fault_is_made(operator, before, after):
    changes = {(m.operator, m.before, m.after) for m in made()}
    assert (operator, before, after) in changes


def test_a_mutant_changes_its_place_and_nothing_else():
    for mutant in made():
        changed = mutant.applied(SOURCE)
        assert changed != SOURCE
        assert changed[: mutant.start] == SOURCE[: mutant.start]
        assert changed[mutant.start + len(mutant.after) :] == SOURCE[mutant.end :]
        assert SOURCE.count("\n", 0, mutant.start) == mutant.line - 1
        assert parses(changed), mutant


def test_messages_and_annotations_are_left_alone():
    assert not [m for m in made() if "+ 1" in m.before or m.before in ("int", "int | None", "bool")]


def test_equal_changes_of_one_scope_are_told_apart():
    mutants = mutants_of("a.py", "def f(x):\n    return (x < 1) + (x < 1)\n")
    assert len({key_of(vars(m)) for m in mutants}) == len(mutants)


def test_a_draw_depends_on_its_seed_and_a_larger_one_begins_like_it(tmp_path):
    path = tmp_path / "ssdistill/chain/thing.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    few, more = (choose(made(), count, 0, "chain", tmp_path) for count in (3, 5))
    assert more[:3] == few and len({m.line for m in more}) == 5
    draws = {tuple(choose(made(), 5, seed, "chain", tmp_path)) for seed in range(9)}
    assert len(draws) > 1
    assert {room_of(m) for m in made()} == {"chain", "defaults"}


def test_the_score_is_of_those_that_matter():
    statuses = ("noticed", "timeout", "survived", "survived")
    pairs = zip(made(), statuses, strict=False)
    lines = [{"room": "chain", "status": status, **vars(m)} for m, status in pairs]
    entry = {name: lines[3][name] for name in vars(made()[0])} | {"reason": "the same"}
    row = table(marked(lines, [entry])).splitlines()[2]
    assert row == "| chain | 4 | 1 | 2 | 1 | 0 | 0 | 67% |"


def line(before, status, room="a"):
    place = {"file": "f", "scope": "", "operator": "constant", "after": "2", "nth": 0}
    return {"room": room, "line": 1, "before": before, "status": status, **place}


def test_a_draw_is_counted_as_it_was_first_tried_and_as_it_stands():
    first = [
        line("1", "noticed"),
        line("2", "timeout"),
        line("3", "survived"),
        line("4", "uncovered"),
        line("5", "survived"),
        line("6", "survived"),
    ]
    now = [
        line("1", "noticed"),
        line("2", "noticed"),
        line("3", "noticed"),
        line("4", "survived"),
        line("5", "equivalent"),
        line("7", "noticed"),
        line("1", "noticed", room="other"),
    ]
    rows = first_table(first, now).splitlines()
    assert rows[2:] == [
        "| a | 5 | 1 | 2 | 50% | 3 | 75% |",
        "| **all** | 5 | 1 | 2 | 50% | 3 | 75% |",
    ]


def test_a_room_has_its_own_tests_and_those_across_rooms_that_import_it(tmp_path):
    texts = {
        "tests/unit/a/test_x.py": "",
        "tests/unit/b/test_y.py": "from ssdistill.a import x",
        "tests/contract/test_c.py": "from ssdistill.a.x import y",
        "tests/contract/test_d.py": "from ssdistill.ab import y",
        "tests/integration/test_e.py": "import ssdistill.a",
        "tests/property/test_f.py": "import ssdistill.a",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert files_of_tests(tmp_path, ["a"]) == [
        "tests/contract/test_c.py",
        "tests/integration/test_e.py",
        "tests/unit/a/test_x.py",
    ]
    everything = files_of_tests(tmp_path, None)
    assert everything == sorted(set(texts) - {"tests/integration/test_e.py"})


@pytest.mark.parametrize(
    ("status", "test", "doubtful"),
    [
        ("noticed", "tests/unit/test_a.py::test_b", False),
        ("noticed", "tests/unit/test_a.py", True),
        ("noticed", "", True),
        ("timeout", "", True),
        ("survived", "", False),
        ("uncovered", "", False),
    ],
)
def test_what_no_single_test_noticed_is_tried_without_the_mutant(status, test, doubtful):
    assert Outcome(status, test).is_doubtful == doubtful


def test_the_copy_has_every_page_and_folder_of_the_tree():
    root = Path(__file__).resolve().parents[2]
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a checkout")
    pages = {name for name in tracked.stdout.split() if name.endswith(".md") and "/" not in name}
    assert pages <= {*COPIED_FILES} and (root / "docs").is_dir() and "docs" in COPIED

"""Make mutants of the package and see which of them the tests notice; see README.md.

    python tests/mutation/run.py map    # which test executes which line; minutes
    python tests/mutation/run.py run    # the mutants
    python tests/mutation/run.py again  # only those that the record says survived
    python tests/mutation/run.py check  # do the tests that noticed pass without a mutant?
    python tests/mutation/run.py table  # the score by room, into README.md

Needs coverage.py beside the packages for development: ``pip install coverage``.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import record
from sampling import all_mutants, choose, room_of

HERE = Path(__file__).resolve().parent
RECORD, EQUIVALENTS, README = HERE / "record.jsonl", HERE / "equivalent.json", HERE / "README.md"
FIRST = HERE / "first.jsonl"
"""The newest draw as the tests that stood before took it; the format is the record's."""
SUITES = ("unit", "contract", "golden", "property")
CROSSING = ("contract", "golden", "integration")
UNNOTICED = ("survived", "uncovered", "unfinished")
PIECES = 3
"""Processes of pytest that a worker of ``map`` starts one after the other."""
BLOCK = "<!-- {name}:begin -->", "<!-- {name}:end -->"


def main() -> None:
    args = _parser().parse_args()
    {"map": make_map, "run": run, "again": again, "check": check, "table": write_table}[
        args.command
    ](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["map", "run", "again", "check", "table"])
    parser.add_argument("--tree", type=Path, default=HERE.parents[1], help="what is mutated")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/mutation"), help="for copies")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--first", type=Path, default=FIRST, help="run: a second copy of its lines")
    parser.add_argument("--rooms", nargs="*", help="only these rooms")
    parser.add_argument("--count", type=int, default=30, help="mutants a room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests a mutant")
    parser.add_argument("--tests", nargs="*", help="map: only these test files, added to the map")
    parser.add_argument("--skip", nargs="*", default=[], help="map, run --whole: not these tests")
    parser.add_argument("--whole", action="store_true", help="run: all tests of a room, no map")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--locks", nargs="*", type=Path, default=[], help="run holding one of them")
    return parser


def make_map(args: argparse.Namespace) -> None:
    """Record the lines of every test, or of those of ``--rooms``, from nothing.

    With ``--tests``, the lines of these files are added to the map.
    """
    from concurrent.futures import ThreadPoolExecutor

    args.scratch.mkdir(parents=True, exist_ok=True)
    path = args.scratch / "lines"
    if not args.tests:  # lines of an older tree would be taken for lines of this one
        path.unlink(missing_ok=True)
        Path(f"{path}.seconds.json").unlink(missing_ok=True)
    files = args.tests or files_of_tests(args.tree, args.rooms)
    count = min(len(files), PIECES * args.workers)
    pieces = [(args, Path(f"{path}.{n}"), files[n::count]) for n in range(count)]
    with ThreadPoolExecutor(args.workers) as pool:
        for new in pool.map(_record_lines, *zip(*pieces, strict=True)):
            _merge(path, new)


def files_of_tests(tree: Path, rooms: Sequence[str] | None) -> list[str]:
    """Every file of tests that takes part, or what ``rooms`` have; relative to the tree.

    A room has its own unit tests, and what imports it of the suites that cross rooms.
    """
    tests = tree / "tests"
    if rooms:
        paths = {path for room in rooms for path in (tests / "unit" / room).rglob("test_*.py")}
        imports = re.compile(rf"\bssdistill\.({'|'.join(rooms)})\b")
        crossing = (path for suite in CROSSING for path in (tests / suite).rglob("test_*.py"))
        paths |= {path for path in crossing if imports.search(path.read_text())}
    else:
        paths = {path for suite in SUITES for path in (tests / suite).rglob("test_*.py")}
    return sorted(path.relative_to(tree).as_posix() for path in paths)


def _record_lines(args: argparse.Namespace, new: Path, files: list[str]) -> Path:
    """Run the files in a process of their own, which writes its lines to ``new``."""
    import runner

    new.unlink(missing_ok=True)
    inherited = os.environ.get("PYTHONPATH", "")
    places = f"{args.tree.resolve()}:{HERE}:{inherited}".rstrip(":")
    environment = os.environ | {"PYTHONPATH": places, "MUTATION_CONTEXTS": str(new.resolve())}
    command = [sys.executable, "-m", "pytest", "-p", "contexts", "-p", "no:cacheprovider", *files]
    command += [f"--deselect={test}" for test in args.skip]
    with runner.one_of(args.locks):
        subprocess.run(command, cwd=args.tree, env=environment, check=False)
    return new


def _merge(path: Path, new: Path) -> None:
    """Add the lines, seconds and failures of ``new`` to those in ``path``."""
    from coverage import CoverageData

    known = CoverageData(str(path))
    known.read()
    more = CoverageData(str(new))
    more.read()
    known.update(more)
    known.write()
    seconds = Path(f"{path}.seconds.json")
    merged = json.loads(seconds.read_text()) if seconds.exists() else {"seconds": {}, "failed": []}
    added = json.loads(Path(f"{new}.seconds.json").read_text())
    merged["failed"] = sorted(set(merged["failed"]) - set(added["seconds"]) | set(added["failed"]))
    merged["seconds"] |= added["seconds"]
    seconds.write_text(json.dumps(merged))


def run(args: argparse.Namespace) -> None:
    """Try ``--count`` mutants of each room; what the record holds already is not tried again."""
    rooms = all_mutants(args.tree.resolve())
    known = {record.key_of(line) for line in record.read(args.record)}
    chosen = []
    for room in args.rooms or sorted(rooms):
        drawn = choose(rooms[room], args.count, args.seed, room, args.tree)
        chosen += [m for m in drawn if record.key_of(vars(m)) not in known]
    print(f"seed {args.seed}: {len(chosen)} mutants", flush=True)
    _try(chosen, args, (args.record, args.first))


def again(args: argparse.Namespace) -> None:
    """Try the survivors of the record again, where they can still be made."""
    lines = record.marked(record.read(args.record), json.loads(EQUIVALENTS.read_text()))
    wanted = {record.key_of(x) for x in lines if x["status"] in UNNOTICED}
    rooms = all_mutants(args.tree.resolve())
    for room in args.rooms or sorted(rooms):
        mutants = [m for m in rooms.get(room, []) if record.key_of(vars(m)) in wanted]
        _try(mutants, args, (args.record,))


def _try(mutants: list, args: argparse.Namespace, records: Sequence[Path]) -> None:
    """Try the mutants, each of ``--workers`` processes its part of them in a copy of its own."""
    import runner

    runner.import_heavy_libraries()
    fork = multiprocessing.get_context("fork").Process
    shares = [mutants[n :: args.workers] for n in range(args.workers)]
    workers = [fork(target=_work, args=(share, args, records, n)) for n, share in enumerate(shares)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(mutants: list, args: argparse.Namespace, records: Sequence[Path], number: int) -> None:
    import runner
    from line_map import LineMap

    copy = args.scratch / f"tree{number}"
    runner.copy_tree(args.tree.resolve(), copy)
    lines_of = None if args.whole else LineMap(args.scratch / "lines", args.tree.resolve())
    limit = 2 * args.budget + 30
    for mutant in mutants:
        last = mutant.line + mutant.before.count("\n")
        if lines_of is None:
            tests = _of_the_room(mutant, args)
        else:
            tests = lines_of.tests_of(mutant.file, mutant.line, last, args.budget)
        outcome = runner.run_tests(mutant, tests, copy, limit, args.locks)
        if outcome.is_doubtful:
            control = runner.run_tests(None, tests, copy, limit, args.locks)
            if control.status != "survived":
                outcome = replace(outcome, status="unfinished")
        line = record.line_of(mutant, outcome, room_of(mutant))
        for path in records:
            with path.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        change = f"{mutant.before!r} -> {mutant.after!r}"
        place = f"{mutant.file}:{mutant.line}"
        print(f"{outcome.status:9} {outcome.seconds:5.1f}s {place} {change} {outcome.test}")
        sys.stdout.flush()


def _of_the_room(mutant: Any, args: argparse.Namespace) -> list[str]:
    """Files of tests of the room, that of the mutant's own file first."""
    files = files_of_tests(args.tree, [Path(mutant.file).parts[1]])
    files = [file for file in files if not file.startswith(tuple(args.skip))]
    return sorted(files, key=lambda file: f"/test_{Path(mutant.file).stem}." not in file)


def check(args: argparse.Namespace) -> None:
    """Run the tests that noticed something on the tree as it is: each must pass."""
    import runner

    copy = args.scratch / "tree-check"
    runner.copy_tree(args.tree.resolve(), copy)
    runner.import_heavy_libraries()
    tests = {line["test"] for line in record.read(args.record) if "::" in line["test"]}
    by_file: dict[str, list[str]] = {}
    for test in sorted(tests):
        by_file.setdefault(test.split("::")[0], []).append(test)
    for file, members in by_file.items():
        outcome = runner.run_tests(None, members, copy, 600.0, args.locks)
        print(f"{outcome.status:9} {outcome.seconds:5.1f}s {file} {len(members)} {outcome.test}")


def write_table(args: argparse.Namespace) -> None:
    """Put the score by room into README.md; the record loses what can no longer be made."""
    made = {
        record.key_of(vars(m)): m
        for room in all_mutants(args.tree.resolve()).values()
        for m in room
    }
    lines = {record.key_of(x): x for x in record.read(args.record)}
    gone = len(lines.keys() - made.keys())
    print(f"{gone} mutants of the record are gone from the package")
    lines = {key: x | {"line": made[key].line} for key, x in lines.items() if key in made}
    lines = record.marked(list(lines.values()), json.loads(EQUIVALENTS.read_text()))
    record.write(args.record, [{k: v for k, v in x.items() if k != "reason"} for x in lines])
    _put("first", record.first_table(record.read(args.first), lines))
    _put("score", record.table(lines))


def _put(name: str, table: str) -> None:
    """Print a table and put it into its place in README.md."""
    begin, end = (mark.format(name=name) for mark in BLOCK)
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")
    print(table)


if __name__ == "__main__":
    main()

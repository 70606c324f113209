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
import os
import subprocess
import sys
from pathlib import Path

import record
from sampling import all_mutants, choose, room_of

HERE = Path(__file__).resolve().parent
RECORD, EQUIVALENTS, README = HERE / "record.jsonl", HERE / "equivalent.json", HERE / "README.md"
SUITES = ("unit", "contract", "golden", "property")
UNNOTICED = ("survived", "uncovered", "unfinished")
BEGIN, END = "<!-- score:begin -->", "<!-- score:end -->"


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
    parser.add_argument("--rooms", nargs="*", help="only these rooms")
    parser.add_argument("--count", type=int, default=30, help="mutants a room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests a mutant")
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2: two halves, side by side")
    parser.add_argument("--tests", nargs="*", help="map: only these test files, added to the map")
    parser.add_argument("--locks", nargs="*", type=Path, default=[], help="run holding one of them")
    return parser


def make_map(args: argparse.Namespace) -> None:
    """Record the lines of every test, or of ``--tests``, in the tree."""
    from coverage import CoverageData

    args.scratch.mkdir(parents=True, exist_ok=True)
    path, new = args.scratch / "lines", args.scratch / "lines.new"
    new.unlink(missing_ok=True)
    files = args.tests or [f"tests/{suite}" for suite in SUITES]
    found = os.environ.get("PYTHONPATH", "")
    places = f"{args.tree.resolve()}:{HERE}:{found}".rstrip(":")
    environment = os.environ | {"PYTHONPATH": places, "MUTATION_CONTEXTS": str(new.resolve())}
    command = [sys.executable, "-m", "pytest", "-p", "contexts", "-p", "no:cacheprovider", *files]
    subprocess.run(command, cwd=args.tree, env=environment, check=False)
    _merge(CoverageData, path, new)


def _merge(data_class: type, path: Path, new: Path) -> None:
    """Add the lines, seconds and failures of ``new`` to those in ``path``."""
    known = data_class(str(path))
    known.read()
    more = data_class(str(new))
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
    _try(chosen, args)


def again(args: argparse.Namespace) -> None:
    """Try the survivors of the record again, where they can still be made."""
    lines = record.marked(record.read(args.record), json.loads(EQUIVALENTS.read_text()))
    wanted = {record.key_of(x) for x in lines if x["status"] in UNNOTICED}
    rooms = all_mutants(args.tree.resolve())
    for room in args.rooms or sorted(rooms):
        _try([m for m in rooms.get(room, []) if record.key_of(vars(m)) in wanted], args)


def _try(mutants: list, args: argparse.Namespace) -> None:
    import runner
    from line_map import LineMap

    part, parts = (int(number) for number in args.part.split("/"))
    copy = args.scratch / f"tree{part}"
    runner.copy_tree(args.tree.resolve(), copy)
    lines_of = LineMap(args.scratch / "lines", args.tree.resolve())
    runner.import_heavy_libraries()
    limit = 2 * args.budget + 30
    for mutant in mutants[part::parts]:
        last = mutant.line + mutant.before.count("\n")
        tests = lines_of.tests_of(mutant.file, mutant.line, last, args.budget)
        outcome = runner.run_tests(mutant, tests, copy, limit, args.locks)
        line = record.line_of(mutant, outcome, room_of(mutant))
        with args.record.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        change = f"{mutant.before!r} -> {mutant.after!r}"
        place = f"{mutant.file}:{mutant.line}"
        print(f"{outcome.status:9} {outcome.seconds:5.1f}s {place} {change} {outcome.test}")
        sys.stdout.flush()


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
    """Put the score by room, from the record, into README.md."""
    lines = {record.key_of(x): x for x in record.read(args.record)}
    lines = record.marked(list(lines.values()), json.loads(EQUIVALENTS.read_text()))
    record.write(args.record, [{k: v for k, v in x.items() if k != "reason"} for x in lines])
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{record.table(lines)}\n{END}{after}")
    print(record.table(lines))


if __name__ == "__main__":
    main()

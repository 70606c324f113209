"""The record of a run, one line of JSON for each mutant, and the table made from it."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from operators import Mutant
from runner import Outcome

NOTICED = ("noticed", "timeout")
EQUIVALENT = "equivalent"
MATTERS = (*NOTICED, "survived", "uncovered", "unfinished")
KEY = ("file", "scope", "operator", "before", "after", "nth")
HEADER = "| room | mutants | equivalent | noticed | survived | uncovered | unfinished | score |"
RULE = "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
FIRST_HEADER = "| room | drawn | equivalent | noticed at first | share | noticed now | share |"
FIRST_RULE = "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |"
STAGES = ("first", "now")


def line_of(mutant: Mutant, outcome: Outcome, room: str) -> dict[str, object]:
    """One line of the record."""
    place = asdict(mutant)
    return {"room": room, "line": mutant.line, **{n: place[n] for n in KEY}, **asdict(outcome)}


def key_of(line: dict) -> tuple:
    """What one mutant is recognized by after the file around it has changed."""
    return tuple(line[name] for name in KEY)


def read(path: Path) -> list[dict]:
    """All lines of a record; none where it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, lines: list[dict]) -> None:
    """Write the record, sorted by place."""
    ordered = sorted(lines, key=lambda x: (x["room"], x["file"], x["line"], x["before"]))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered)
    path.write_text(text)


def marked(lines: list[dict], equivalents: list[dict]) -> list[dict]:
    """The lines, with the status of those that a reader has judged to change nothing."""
    reasons = {key_of(entry): entry["reason"] for entry in equivalents}
    return [
        line | {"status": EQUIVALENT, "reason": reasons[key_of(line)]}
        if key_of(line) in reasons and line["status"] not in NOTICED
        else line
        for line in lines
    ]


def table(lines: list[dict]) -> str:
    """The score by room, in Markdown: noticed / (mutants - equivalent)."""
    rooms: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        status = "noticed" if line["status"] in NOTICED else line["status"]
        rooms[line["room"]][status] += 1
    total = sum(rooms.values(), Counter())
    rows = [_row(room, counts) for room, counts in sorted(rooms.items())]
    return "\n".join([HEADER, RULE, *rows, _row("**all**", total)])


def _row(room: str, counts: Counter) -> str:
    matter = counts.total() - counts[EQUIVALENT]
    score = f"{counts['noticed'] / matter:.0%}" if matter else "–"
    numbers = (counts.total(), *(counts[s] for s in (EQUIVALENT, "noticed")))
    rest = (*(counts[s] for s in ("survived", "uncovered", "unfinished")), score)
    return "| " + " | ".join(str(cell) for cell in (room, *numbers, *rest)) + " |"


def first_table(first: list[dict], now: list[dict]) -> str:
    """By room, in Markdown: what the tests noticed when a draw was first tried, and notice now.

    Args:
        first: lines of the draw as it was first tried.
        now: all lines of the record, marked; what has no line there is gone from the package.
    """
    status_now = {key_of(line): line["status"] for line in now}
    rooms: dict[str, Counter] = defaultdict(Counter)
    for line in first:
        status = status_now.get(key_of(line))
        if status is None:
            continue
        counts = rooms[line["room"]]
        counts["drawn"] += 1
        counts["matter"] += status in MATTERS
        counts["first"] += status in MATTERS and line["status"] in NOTICED
        counts["now"] += status in NOTICED
    total = sum(rooms.values(), Counter())
    rows = [_first_row(room, counts) for room, counts in sorted(rooms.items())]
    return "\n".join([FIRST_HEADER, FIRST_RULE, *rows, _first_row("**all**", total)])


def _first_row(room: str, counts: Counter) -> str:
    shares = [f"{counts[x] / counts['matter']:.0%}" if counts["matter"] else "–" for x in STAGES]
    equivalent = counts["drawn"] - counts["matter"]
    numbers = (counts["drawn"], equivalent, counts["first"], shares[0], counts["now"], shares[1])
    return "| " + " | ".join(str(cell) for cell in (room, *numbers)) + " |"
